"""Plan: what becomes of every tensor of a checkpoint, and in which file of the output it lies.

changed    a modifier of the recipe changes the layer: read dense, given to its hooks, written by the format
kept       codes and scales of the checkpoint are written as they are: bits do not change
decoded    the layer was quantized, or part of a joint tensor, and is written whole
copied     bytes are copied
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from attrs import evolve, field, frozen

from coldpress.checkpoint.named import Part
from coldpress.dataflow.fused import FusedLayers
from coldpress.errors import ColdpressError
from coldpress.format import Format
from coldpress.modifier import PRUNES, TRANSFORMS
from coldpress.run.preflight import Claim
from coldpress.schemes import QuantizationArgs, Scheme
from coldpress.shardwise.opening import Opened
from coldpress.shardwise.outline import Outline, is_decoded, natural_order
from coldpress.state import State

Fate = Literal["changed", "kept", "decoded", "copied"]

UNIT_BYTES = 16 * 2**20
"""Of dense weights that are worked on at a time; a layer or a group of fused layers that is larger is a unit alone."""

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
"""Dtypes of scales that are any numbers; others, such as powers of two, are part of the grid."""


@frozen(eq=False)
class Unit:
    """Layers that are worked on together.

    Attributes:
        layers: that are written.
        beside: layers of other units that share a global scale with them, and so are read too.
    """

    layers: tuple[str, ...]
    beside: tuple[str, ...] = ()


@frozen(eq=False)
class Shard:
    """One file of the output, named as that of the checkpoint that it is made of.

    Attributes:
        number: of the file, from 0.
        name: of the file.
        units: layers that are worked on.
        copied: tensors that are the same in the output.
        parts: tensors that are a part of a joint one, such as the bias of an expert.
    """

    number: int
    name: str
    units: tuple[Unit, ...]
    copied: tuple[str, ...]
    parts: Mapping[str, Part] = field(factory=dict)


@frozen(eq=False)
class Fates:
    """What becomes of layers.

    Attributes:
        of: layer name to its fate.
        schemes: of layers that are quantized in the output.
    """

    of: Mapping[str, Fate]
    schemes: Mapping[str, Scheme]


def kept_schemes(opened: Opened, outline: Outline, form: Format) -> dict[str, Scheme]:
    """The schemes of layers that the output can hold as the checkpoint has them."""
    found: dict[str, Scheme] = {}
    for name, matrix in outline.matrices.items():
        scheme = opened.weights.scheme(matrix.tensor)
        if scheme is None or matrix.shape == ():
            continue
        fitting = (one for one in _spellings(scheme) if _holds(form, one, name, (matrix.shape[0], matrix.shape[1])))
        kept = next(fitting, None)
        if kept is not None:
            found[name] = kept
    shapes = {name: (outline.matrices[name].shape[0], outline.matrices[name].shape[1]) for name in found}
    return dict(form.complete(found, shapes)) if found else found


def fates_of(
    state: State, claims: Sequence[Claim], kept: Mapping[str, Scheme], outline: Outline, opened: Opened
) -> Fates:
    """Decide for every layer.

    Args:
        state: with the plan of layers.
        claims: of all modifiers.
        kept: what `kept_schemes` says.
        outline: of the checkpoint.
        opened: the checkpoint.
    """
    claimed = {layer.name for claim in claims for layer in claim.layers}
    other = {  # modifiers that change weights whatever their scheme
        layer.name for claim in claims if claim.modifier.traits & {PRUNES, TRANSFORMS} for layer in claim.layers
    }
    fates: dict[str, Fate] = {}
    schemes: dict[str, Scheme] = {}
    for name, matrix in outline.matrices.items():
        planned = state.plan.get(name)
        alike = name not in claimed or _same(None if planned is None else planned.scheme, kept.get(name))
        if name in kept and name not in other and alike:
            fates[name] = "kept"
            schemes[name] = kept[name] if planned is None else planned.scheme
        elif name in claimed:
            fates[name] = "changed"
            if planned is not None:
                schemes[name] = planned.scheme
        else:
            fates[name] = "decoded" if is_decoded(opened.weights, matrix.tensor) else "copied"
    return Fates(fates, schemes)


def shards_of(opened: Opened, outline: Outline, fates: Fates, state: State) -> list[Shard]:
    """The files of the output, in the order of their names."""
    homes = opened.stored.homes()
    layers: dict[Path, list[str]] = {path: [] for path in opened.stored.files}
    copied: dict[Path, list[str]] = {path: [] for path in opened.stored.files}
    parts: dict[Path, dict[str, Part]] = {path: {} for path in opened.stored.files}
    weights, whole = opened.weights, _whole_joints(outline, fates, opened)
    inside = {tensor for one in outline.joint.values() for tensor in one.tensors}
    own = {matrix.tensor: name for name, matrix in outline.matrices.items() if matrix.part is None}
    for tensor in natural_order(weights.names()):
        home = homes[weights.made_of(tensor)[0]]
        if tensor in inside and tensor.rpartition(".")[0] not in whole:
            continue
        if tensor in own and fates.of[own[tensor]] != "copied":
            layers[home].append(own[tensor])
        else:
            copied[home].append(tensor)
    for owner, one in outline.joint.items():
        if owner not in whole:
            for layer, part in one.layers.items():
                layers[homes[weights.made_of(part.tensor)[0]]].append(layer)
            for bias, part in one.biases.items():
                parts[homes[weights.made_of(part.tensor)[0]]][bias] = part
    groups = _groups(state, fates)
    return [
        Shard(number, path.name, tuple(_units(layers[path], groups, outline)), tuple(copied[path]), parts[path])
        for number, path in enumerate(path for path in layers if layers[path] or copied[path] or parts[path])
    ]


def left_out(opened: Opened) -> list[str]:
    """Tensors of the files that are part of no tensor of the dense model."""
    used = {stored for name in opened.weights.names() for stored in opened.weights.made_of(name)}
    return [name for name in natural_order(opened.stored.names()) if name not in used]


def _spellings(scheme: Scheme) -> Iterator[Scheme]:
    """The scheme as its own format has it, and as another one may: the layout and the dtype of scales left open."""
    yield scheme
    yield evolve(scheme, format=None)
    args = scheme.weights
    if args is not None and args.scale_dtype in _FLOATS:
        yield evolve(scheme, format=None, weights=evolve(args, scale_dtype=None))


def _holds(form: Format, scheme: Scheme, name: str, shape: tuple[int, int]) -> bool:
    try:
        scheme = form.complete({name: scheme}, {name: shape})[name]
        form.check(scheme, name, shape)
    except ColdpressError:
        return False
    return form.config({name: scheme}, []) is not None


def _same(planned: Scheme | None, stored: Scheme | None) -> bool:
    """Whether what is stored is what the plan asks for; where it asks for no dtype of scales, any float will do."""
    if planned is None or stored is None:
        return False
    asked, there = _grid(planned.weights), _grid(stored.weights)
    if asked is not None and there is not None and asked.scale_dtype is None and there.scale_dtype in _FLOATS:
        there = evolve(there, scale_dtype=None)
    return asked == there


def _grid(args: QuantizationArgs | None) -> QuantizationArgs | None:
    """What decides on codes and scales, without how scales are found."""
    if args is None:
        return None
    return evolve(args, observer=None, observer_kwargs={}, zp_dtype=None, actorder=None)


def _whole_joints(outline: Outline, fates: Fates, opened: Opened) -> set[str]:
    """Modules whose experts stay in joint tensors: nothing of them is changed or quantized in the output."""
    return {
        owner
        for owner, one in outline.joint.items()
        if all(fates.of[layer] in ("copied", "decoded") for layer in one.layers)
    }


def _groups(state: State, fates: Fates) -> dict[str, tuple[str, ...]]:
    """Layer to the layers that share a global scale with it, itself among them, where schemes have one."""
    two_levels = {
        name
        for name, planned in state.plan.items()
        if planned.scheme.weights is not None
        and planned.scheme.weights.strategy == "tensor_group"
        and fates.of[name] == "changed"
    }
    if not two_levels:
        return {}
    groups = state.fact(FusedLayers).groups
    shared = [tuple(name for name in group if name in two_levels) for group in groups]
    return {name: group for group in shared for name in group}


def _units(layers: Iterable[str], groups: Mapping[str, tuple[str, ...]], outline: Outline) -> Iterable[Unit]:
    """The layers of one file, neighbours together until there are enough of them."""
    layers, here, taken = list(layers), set(layers), set[str]()
    unit: list[str] = []
    size = 0
    for name in layers:
        if name in taken:
            continue
        together = [one for one in groups.get(name, (name,)) if one in here and one not in taken]
        taken.update(together)
        weight = sum(_nbytes(one, outline) for one in together)
        if unit and size + weight > UNIT_BYTES:
            yield _unit(unit, groups)
            unit, size = [], 0
        unit += together
        size += weight
    if unit:
        yield _unit(unit, groups)


def _unit(layers: Sequence[str], groups: Mapping[str, tuple[str, ...]]) -> Unit:
    beside = dict.fromkeys(one for name in layers for one in groups.get(name, ()) if one not in layers)
    return Unit(tuple(layers), tuple(beside))


def _nbytes(name: str, outline: Outline) -> int:
    weight: torch.Tensor = outline.model.get_submodule(name).weight  # type: ignore[assignment]
    return weight.numel() * weight.element_size()
