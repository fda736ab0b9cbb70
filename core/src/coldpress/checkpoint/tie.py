"""Tensors of a model that are one: which a loader makes one again, and a configuration that says so.

    memory                                         files               config.json
    lm_head.weight is embed_tokens.weight          embed_tokens        tie_word_embeddings: true
    lm_head is quantized, embed_tokens is not      both                tie_word_embeddings: false, in every table
    layers.1.mlp.weight is layers.0.mlp.weight     both                as it is: no class of transformers ties these

Transformers ties what a class declares (`_tied_weights_keys`) where its configuration says `tie_word_embeddings`;
engines read the same switch for the output head.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from attrs import frozen
from torch import nn

from coldpress.errors import SchemeError

_SWITCH = "tie_word_embeddings"


@frozen(eq=False)
class Declared:
    """What one configuration ties.

    Attributes:
        owner: the part of the model whose class declares it.
        config: of this part.
        pairs: names of the parameters that become one, from the root of the model.
    """

    owner: Any
    config: Any
    pairs: tuple[tuple[str, str], ...]


def tensor_names(model: nn.Module) -> dict[int, list[str]]:
    """The id of every parameter and saved buffer to all of its names; also those of modules with several names."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return names


@frozen(eq=False)
class WrittenNames:
    """What the tensors of a model are written under.

    Attributes:
        tensors: every name to the name that is written: its own, unless a loader ties it to another one.
        modules: name of a module that has several to all of them.
    """

    tensors: Mapping[str, str]
    modules: Mapping[str, tuple[str, ...]]

    def of(self, module: str, part: str) -> Iterator[str]:
        """The names that a tensor of a module is written under."""
        for name in self.modules.get(module, (module,)):
            full = f"{name}.{part}" if name else part
            yield self.tensors.get(full, full)  # an attachment's has come since


def written_names(model: nn.Module) -> WrittenNames:
    """What the tensors of a model are written under, by its configuration as it is now."""
    tensors = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    homes = {name: name for name in tensors}
    for declared in _declared(model):
        for target, source in declared.pairs:
            if tensors[target] == tensors[source]:
                old, new = homes[target], homes[source]
                homes |= {name: new for name, home in homes.items() if home == old and tensors[name] == tensors[target]}
    modules: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        modules.setdefault(id(module), []).append(name)
    return WrittenNames(homes, {names[0]: tuple(names) for names in modules.values() if len(names) > 1})


def check_untying(model: nn.Module, changed: Collection[str], quantized: Collection[str]) -> None:
    """Refuse to quantize one of two layers that readers of the checkpoint will tie whatever it says.

    Args:
        model: before anything is untied.
        changed: layers whose weights will change.
        quantized: those of them that will be quantized.

    Raises:
        SchemeError: names the layer and what it is tied to.
    """
    weights = {f"{layer}.weight" for layer in changed}
    for declared in _declared(model):
        broken = [pair for pair in declared.pairs if weights.intersection(pair)]
        reason = _held(declared) if broken else None
        for pair in broken if reason is not None else ():
            layer = next((one for one in quantized if f"{one}.weight" in pair), None)
            if layer is not None:
                other = next(name for name in pair if name != f"{layer}.weight")
                raise SchemeError(f"{layer} shares its weight with {other}, and {reason}: ignore {layer!r}")


def settle_ties(model: nn.Module) -> None:
    """Let the configuration of a model say that embeddings are not tied, in every table, where they are not."""
    tensors = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    for declared in _declared(model):
        if any(tensors[target] != tensors[source] for target, source in declared.pairs) and _held(declared) is None:
            for table in _tables(declared.config):
                if getattr(table, _SWITCH, False):
                    setattr(table, _SWITCH, False)


def _declared(model: nn.Module) -> Iterator[Declared]:
    """What each part of a model ties, by its class and configuration as they are now."""
    known = model.state_dict(keep_vars=True).keys()
    for prefix, module in model.named_modules(remove_duplicate=False):
        expand: Callable[[], Mapping[str, str]] | None = getattr(module, "get_expanded_tied_weights_keys", None)
        if expand is None:
            continue
        try:
            found = expand()
        except ValueError:  # a part that its patterns speak of is not there
            continue
        head = f"{prefix}." if prefix else ""
        pairs = [(f"{head}{target}", f"{head}{source}") for target, source in found.items()]
        pairs = [pair for pair in pairs if known >= set(pair)]
        if pairs:
            yield Declared(module, module.config, tuple(pairs))


def _held(declared: Declared) -> str | None:
    """Why the switch of a configuration must stay on although something is untied; None where it may go off."""
    for module in declared.owner.modules():
        if hasattr(module, "base_model_prefix") and _reads_switch(module):
            return f"{type(module).__name__} computes something else where its embeddings are not tied"
    if getattr(type(declared.config).from_dict(_untied(declared.config)), _SWITCH, False):
        return f"{type(declared.config).__name__} ties them whatever config.json says"
    return None


def _untied(config: Any) -> dict[str, Any]:
    """A configuration as config.json would have it, with every switch off."""
    table: dict[str, Any] = {**config.to_dict(), _SWITCH: False}
    for name in getattr(config, "sub_configs", {}):
        if getattr(config, name, None) is not None:
            table[name] = _untied(getattr(config, name))
    return table


def _reads_switch(module: Any) -> bool:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and _SWITCH in code.co_names


def _tables(config: Any) -> Iterator[Any]:
    """A configuration and those inside of it."""
    yield config
    for name in getattr(config, "sub_configs", {}):
        inner = getattr(config, name, None)
        if inner is not None:
            yield from _tables(inner)
