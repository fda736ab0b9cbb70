"""Which layers an engine fuses: linear layers side by side in one module that read the very same input.

    self_attn:  q_proj k_proj v_proj  |  o_proj          mlp:  gate_proj up_proj  |  down_proj

Engines keep one matrix for such layers, so they must have one scheme, and one global scale where there is one.
It is found by running a block of each kind, by no name; layers that the tiny batch did not reach (experts) are taken
for fused like those of a module of the same class and children that it did.
"""

import logging
from collections.abc import Callable, Mapping, Sequence

from attrs import evolve, field, frozen
from torch import nn

from coldpress.dataflow.describe import capture_blocks, token_batch
from coldpress.dataflow.inputs import distinct_inputs
from coldpress.errors import ModelError
from coldpress.schemes import Scheme, describe
from coldpress.stage import Layer, find_layers

log = logging.getLogger(__name__)

_Groups = tuple[tuple[str, ...], ...]


@frozen(eq=False)
class FusedLayers:
    """The layers that engines fuse; a fact of a model, found while it can be run: `state.fact(FusedLayers)`.

    Where blocks cannot be run, nothing is found, and the log says so.

    Attributes:
        model: in memory or on the meta device.
        groups: names of layers in groups of two or more, in model order.
    """

    model: nn.Module
    groups: _Groups = field(init=False)

    @groups.default
    def _found(self) -> _Groups:
        try:
            return _find(self.model)
        except ModelError as error:
            log.warning("which layers share an input is not known: %s", error)
            return ()

    def beside(self, layer: Layer) -> list[Layer]:
        """The other layers of its group."""
        group = next((group for group in self.groups if layer.name in group), ())
        others = [(name, self.model.get_submodule(name)) for name in group if name != layer.name]
        return list(find_layers(others))


def _find(model: nn.Module) -> _Groups:
    blocks, calls = capture_blocks(model, token_batch(model))
    by_kind: dict[int, list[tuple[str, ...]]] = {}
    for block in blocks:
        if block.name in calls and block.kind not in by_kind:
            try:
                by_kind[block.kind] = _side_by_side(distinct_inputs(block.module, calls[block.name]))
            except ModelError as error:
                log.warning("which layers of %s share an input is not known: %s", block.name, error)
    found = [
        tuple(f"{block.name}.{name}" for name in group) for block in blocks for group in by_kind.get(block.kind, [])
    ]
    return _completed(model, found)


def _side_by_side(groups: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The groups cut into layers of one parent, those of one layer left out."""
    parts: list[tuple[str, ...]] = []
    for group in groups:
        parents: dict[str, list[str]] = {}
        for name in group:
            parents.setdefault(name.rpartition(".")[0], []).append(name)
        parts += [tuple(names) for names in parents.values() if len(names) > 1]
    return parts


def _completed(model: nn.Module, found: list[tuple[str, ...]]) -> _Groups:
    """The groups, and those of modules that look the same and were not reached, in model order."""
    known: dict[object, list[tuple[str, ...]]] = {}
    for group in found:
        parent = group[0].rpartition(".")[0]
        known.setdefault(_looks(model.get_submodule(parent)), []).append(
            tuple(name.removeprefix(f"{parent}.") for name in group)
        )
    groups: dict[tuple[str, ...], None] = {}
    for name, module in model.named_modules():
        for part in known.get(_looks(module), []):
            groups[tuple(f"{name}.{child}" for child in part)] = None
    return tuple(groups)


def _looks(module: nn.Module) -> object:
    return type(module), tuple(name for name, _ in module.named_children())


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
            said = [f"{', '.join(names)}: {describe(one) if one else 'left as it is'}" for one, names in parts.items()]
            problems.append("; ".join(said))
    return problems
