"""What tensors are called on disk, where that differs from what modules are called in memory.

    memory    model.layers.0.mlp.experts.3.gate_proj.weight
    disk      model.layers.0.block_sparse_moe.experts.3.w1.weight        a Mixtral, as vLLM reads it

The rules are transformers' own, by which it renames what it loads and names it back when it saves.  Those for fused
experts are asked what they make of small numbered tensors, so that they also say which matrix of which expert is what.
"""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn

from coldpress.checkpoint.turned import Turned, turned_tensor
from coldpress.experts.layout import DOWN
from coldpress.experts.linear import LinearExperts

_TROUBLE = (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError, NotImplementedError)
_HIDDEN, _WIDTH = 3, 2  # of the numbered tensors
_APART = 1_000_000  # more numbers than those of one module have


@frozen(eq=False)
class CheckpointNames:
    """The names of one model.

    Attributes:
        renamed: name of a tensor in memory to its name on disk, where they differ.
        fused: name of every experts module whose plain checkpoint has its experts in one tensor.
        remade: name of every tensor that transformers makes out of others in another way.
        turned: name of every joint tensor that it turns round.
    """

    renamed: Mapping[str, str] = field(factory=dict)
    fused: frozenset[str] = frozenset()
    remade: frozenset[str] = frozenset()
    turned: Mapping[str, Turned] = field(factory=dict)
    _back: Mapping[str, str] = field(init=False)

    @_back.default
    def _turn(self) -> Mapping[str, str]:
        tensors = {disk: name for name, disk in self.renamed.items()}
        layers = {_layer(disk): _layer(name) for name, disk in self.renamed.items() if _is_weight(name, disk)}
        return {**layers, **tensors}

    def on_disk(self, name: str) -> str:
        """What a tensor is called on disk; also one that stands for a weight, such as `weight_scale`."""
        if name in self.renamed:
            return self.renamed[name]
        owner, _, suffix = name.rpartition(".")
        return f"{self.layer(owner)}.{suffix}" if owner else name

    def in_memory(self, name: str) -> str:
        """What a tensor on disk, or what it stands for, is called in memory; the inverse of `on_disk`."""
        if name in self._back:
            return self._back[name]
        owner, _, suffix = name.rpartition(".")
        return f"{self._back[owner]}.{suffix}" if owner in self._back else name

    def layer(self, name: str) -> str:
        """What a layer is called on disk."""
        weight = self.renamed.get(f"{name}.weight", "")
        return _layer(weight) if weight.endswith(".weight") else name

    def saved(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor as it is on disk."""
        return self.turned[name].to_disk(tensor) if name in self.turned else tensor

    def loaded(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the disk as it is in memory; the inverse of `saved`."""
        return self.turned[name].to_memory(tensor) if name in self.turned else tensor


def _is_weight(name: str, disk: str) -> bool:
    return name.endswith(".weight") and disk.endswith(".weight")


def _layer(weight: str) -> str:
    return weight.removesuffix(".weight")


def checkpoint_names(model: nn.Module) -> CheckpointNames:
    """The names of a model's tensors on disk, whether its experts are fused or linear layers."""
    rules = _rules(model)
    experts = {name: module for name, module in model.named_modules() if isinstance(module, LinearExperts)}
    found, fused = _expert_names(experts, rules)
    tensors = [*model.state_dict(), *(f"{name}.{part}" for name in fused for part in experts[name].shapes)]
    turned = _turned_tensors({name: experts[name] for name in fused}, rules)
    found |= {name: one.disk for name, one in turned.items()}
    names = {name: found.get(name) or _renamed(name, rules) for name in tensors}
    renamed = {name: other for name, other in names.items() if name != other}
    if len(set(names.values())) < len(names):  # two tensors would share a name
        renamed = {}
    remade = frozenset(name for name in tensors if name not in found and _is_remade(name, rules))
    return CheckpointNames(renamed, fused, remade, turned)


@frozen(eq=False)
class _Rules:
    """Transformers' rules from memory to disk.

    Attributes:
        model: what transformers' functions take for a model.
        converters: those that make other tensors.
        renamings: those that only rename.
    """

    model: Any
    converters: tuple[Any, ...] = ()
    renamings: tuple[Any, ...] = ()


def _rules(model: Any) -> _Rules:
    if getattr(model, "config", None) is None or not hasattr(model, "base_model_prefix"):
        return _Rules(None)
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    rules = getattr(model, "_weight_conversions", None)  # those that were of use when its files were read
    try:
        rules = _default_rules(model) if rules is None else rules
        turned = [rule.reverse_transform() for rule in rules[::-1]]
    except ValueError:  # a rule that also decoded what was compressed
        rules = _default_rules(model)
        turned = [rule.reverse_transform() for rule in rules[::-1]]
    return _Rules(
        SimpleNamespace(_weight_conversions=rules, config=model.config),
        tuple(rule for rule in turned if isinstance(rule, WeightConverter)),
        tuple(rule for rule in turned if isinstance(rule, WeightRenaming)),
    )


def _default_rules(model: Any) -> list[Any]:
    """The rules of a model that was not read from files."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    # A prefix that some checkpoints have and others lack is left as the model has it.
    found = get_model_conversion_mapping(model, add_legacy=False)
    return [rule for rule in found if not isinstance(rule, PrefixChange)]


def _renamed(name: str, rules: _Rules) -> str:
    """The name on disk of a tensor that is the same there; its own where other tensors are made of it."""
    if _is_remade(name, rules):
        return name
    for rule in rules.renamings:
        name, _ = rule.rename_source_key(name)
    return name


def _is_remade(name: str, rules: _Rules) -> bool:
    return any(rule.rename_source_key(name)[1] is not None for rule in rules.converters)


def _turned_tensors(experts: Mapping[str, LinearExperts], rules: _Rules) -> dict[str, Turned]:
    """The joint tensors of experts that are turned round on disk, by name."""
    found: dict[str, Turned] = {}
    for name, module in experts.items():
        for part, sample in _numbered(module, 1).items():
            full = f"{name}.{part}"
            rule = next((one for one in rules.converters if one.rename_source_key(full)[1] is not None), None)
            one = None if rule is None else turned_tensor(full, sample, rules.model, rule)
            found |= {} if one is None else {full: one}
    return found


def _expert_names(experts: Mapping[str, LinearExperts], rules: _Rules) -> tuple[dict[str, str], frozenset[str]]:
    """Name of each expert's weights to what they are called on disk; and the modules that stay fused there."""
    numbered = {name: _numbered(module, 1 + i * _APART) for i, (name, module) in enumerate(experts.items())}
    tensors = {f"{name}.{part}": tensor for name, parts in numbered.items() for part, tensor in parts.items()}
    if not tensors or rules.model is None:
        return {}, frozenset(experts)
    from transformers.core_model_loading import revert_weight_conversion

    try:
        reverted = revert_weight_conversion(rules.model, dict(tensors))
    except _TROUBLE:
        return {}, frozenset(experts)
    places = {_key(tensor): name for name, tensor in reverted.items() if tensor.ndim == 2 and name.endswith(".weight")}
    names: dict[str, str] = {}
    fused = []
    for name, module in experts.items():
        wanted = dict(_matrices(name, module, numbered[name]))
        if all(_key(matrix) in places for matrix in wanted.values()):
            names |= {full: places[_key(matrix)] for full, matrix in wanted.items()}
        else:
            fused.append(name)
    return names, frozenset(fused)


def _numbered(module: LinearExperts, first: int) -> dict[str, Tensor]:
    """Small tensors of the form of the fused ones, that count on from `first`, so that no number occurs twice."""
    tensors = {}
    for role, slot in module.layout.slots.items():
        if slot.parameter in tensors:
            continue
        joint = _WIDTH if slot.rows == "all" else 2 * _WIDTH
        out, inner = (_HIDDEN, _WIDTH) if role == DOWN else (joint, _HIDDEN)
        shape = (module.count, inner, out) if slot.transposed else (module.count, out, inner)
        numbers = torch.arange(first, first + module.count * out * inner, dtype=torch.float64).reshape(shape)
        tensors[slot.parameter] = numbers.flatten(0, 1) if slot.each else numbers
        first += numbers.numel()
    return tensors


def _matrices(name: str, module: LinearExperts, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Name and numbered matrix, [O, I], of every projection of every expert."""
    for role, slot in module.layout.slots.items():
        rows = len(tensors[slot.parameter]) // module.count
        small = evolve(slot, each=rows) if slot.each else slot
        for number, matrix in enumerate(small.weights(tensors)):
            yield f"{name}.{number}.{role}.weight", matrix


def _key(matrix: Tensor) -> tuple[tuple[int, ...], tuple[float, ...]]:
    return tuple(matrix.shape), tuple(matrix.flatten().tolist())
