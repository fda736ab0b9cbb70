"""Which layers an engine fuses: linear layers side by side in one module that it keeps as one matrix.

    self_attn:  q_proj k_proj v_proj  |  o_proj          mlp:  gate_proj up_proj  |  down_proj

They must have one scheme, and one global scale where there is one.  Which layers these are is a fact about engines:
the names below are vLLM's (`packed_modules_mapping` of its models, and what its loaders stack).  Layers that are called
so but do not read one tensor, as in cross-attention, are told apart by running a block of each kind where that can be
done; layers that read one tensor and are not called so (Qwen3-Next's `in_proj_qkvz` and `in_proj_ba`) stay two.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from attrs import evolve, field, frozen
from torch import nn

from coldpress.dataflow.describe import capture_blocks, token_batch
from coldpress.dataflow.inputs import distinct_inputs
from coldpress.errors import ModelError
from coldpress.schemes import Scheme, describe
from coldpress.stage import Layer, find_layers

log = logging.getLogger(__name__)

_Groups = tuple[tuple[str, ...], ...]

PACKED: tuple[tuple[str, ...], ...] = (
    ("q_proj", "k_proj", "v_proj", "b_proj", "f_a_proj", "g_a_proj"),  # Kimi Delta Attention; most have the first three
    ("query", "key", "value"),  # BERT, ViT
    ("gate_proj", "up_proj"),
    ("w1", "w3"),  # InternLM2, LFM2, Mixtral's experts under the names of its checkpoint
    ("c_fc_0", "c_fc_1"),  # EXAONE
    ("q_a_proj", "kv_a_proj_with_mqa"),  # DeepSeek's latent attention
    ("in_proj_qkv", "in_proj_z"),  # Qwen3.5's gated delta net
    ("in_proj_b", "in_proj_a"),
)
"""Names of layers of one module of which vLLM makes one layer, as far as the module has them."""


@frozen(eq=False)
class FusedLayers:
    """The layers that engines fuse; a fact of a model, found while it can be run: `state.fact(FusedLayers)`.

    Attributes:
        model: in memory or on the meta device.
        groups: names of layers in groups of two or more, in model order.
    """

    model: nn.Module
    groups: _Groups = field(init=False)

    @groups.default
    def _found(self) -> _Groups:
        named = named_groups(self.model)
        return _apart(self.model, named, _inputs(self.model)) if named else ()

    def beside(self, layer: Layer) -> list[Layer]:
        """The other layers of its group."""
        group = next((group for group in self.groups if layer.name in group), ())
        others = [(name, self.model.get_submodule(name)) for name in group if name != layer.name]
        return list(find_layers(others))


def named_groups(model: nn.Module) -> _Groups:
    """Layers side by side that have the names of layers which engines fuse, in model order."""
    children: dict[str, dict[str, str]] = {}
    for layer in find_layers(model.named_modules()):
        parent, _, last = layer.name.rpartition(".")
        children.setdefault(parent, {})[last] = layer.name
    groups = [
        tuple(known[part] for part in packed if part in known) for known in children.values() for packed in PACKED
    ]
    return tuple(group for group in groups if len(group) > 1)


def _inputs(model: nn.Module) -> dict[str, object]:
    """Name of every layer that a tiny batch reaches in a block to what tells its input; empty where none can be run."""
    try:
        blocks, calls = capture_blocks(model, token_batch(model))
    except ModelError as error:
        log.debug("which layers share an input is not known: %s", error)
        return {}
    by_kind: dict[int, _Groups] = {}
    for block in blocks:
        if block.name in calls and block.kind not in by_kind:
            try:
                by_kind[block.kind] = distinct_inputs(block.module, calls[block.name])
            except ModelError as error:
                log.debug("which layers of %s share an input is not known: %s", block.name, error)
    return {
        f"{block.name}.{name}": (block.name, number)
        for block in blocks
        for number, group in enumerate(by_kind.get(block.kind, ()))
        for name in group
    }


def _apart(model: nn.Module, groups: _Groups, inputs: Mapping[str, object]) -> _Groups:
    """The groups, those that read several tensors cut into layers that read one.

    What a module's layers read is taken for what those of another one of the same class do, where no token reached it.
    """
    patterns: dict[object, list[tuple[str, ...]]] = {}
    for group in groups:
        if all(name in inputs for name in group):
            patterns.setdefault(_kind(model, group), _by_input(group, inputs))
    found = []
    for group in groups:
        parent = group[0].rpartition(".")[0]
        for part in patterns.get(_kind(model, group), [_last_names(group)]):
            found.append(tuple(f"{parent}.{name}" if parent else name for name in part))
    return tuple(group for group in found if len(group) > 1)


def _by_input(group: Iterable[str], inputs: Mapping[str, object]) -> list[tuple[str, ...]]:
    parts: dict[object, list[str]] = {}
    for name in group:
        parts.setdefault(inputs[name], []).append(name)
    return [_last_names(names) for names in parts.values()]


def _last_names(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.rpartition(".")[2] for name in names)


def _kind(model: nn.Module, group: Sequence[str]) -> object:
    """What modules have in common whose layers read alike: class, place in the block, and children."""
    parent = group[0].rpartition(".")[0]
    module = model.get_submodule(parent)
    return (
        type(module),
        parent.rpartition(".")[2],
        tuple(name for name, _ in module.named_children()),
        _last_names(group),
    )


def split_groups(model: nn.Module, schemes: Mapping[str, Scheme], fused: Callable[[], FusedLayers]) -> list[str]:
    """Fused layers that do not have one scheme, in words.

    Args:
        model: in memory or on the meta device.
        fused: which layers are; asked only where layers of one module differ.
        schemes: layer name to scheme; a layer without is left as it is.
    """

    def kind(name: str) -> Scheme | None:
        return evolve(schemes[name], targets=()) if name in schemes else None

    children: dict[str, set[Scheme | None]] = {}
    for layer in find_layers(model.named_modules()):
        children.setdefault(layer.name.rpartition(".")[0], set()).add(kind(layer.name))
    if all(len(kinds) == 1 for kinds in children.values()):
        return []
    problems = []
    for group in fused().groups:
        parts: dict[Scheme | None, list[str]] = {}
        for name in group:
            parts.setdefault(kind(name), []).append(name)
        if len(parts) > 1:
            words = [f"{', '.join(names)}: {describe(one) if one else 'left as it is'}" for one, names in parts.items()]
            problems.append("; ".join(words))
    return problems
