"""Rotator: what modifiers share that rotate a model: what can be rotated where, by probing, and doing it.

plan          `streams`, `heads`: found once for each kind of block; what cannot be rotated is refused
initialize    norms folded, parameters of the stage rotated in float64, online rotations attached; no data are needed
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, ClassVar

import torch
from attrs import define, field, frozen
from attrs.validators import in_, instance_of, optional
from torch import Tensor, nn

from coldpress.attachment import attachments_on
from coldpress.attention import AttentionStates, attention_modules, attention_tapped
from coldpress.bases.online_rotation import OnlineRotation
from coldpress.bases.probing import call_of, dataflow_of, kind_of
from coldpress.dataflow import shared_parameters, token_batch
from coldpress.dataflow.call import Call
from coldpress.dataflow.fold import gain
from coldpress.dataflow.heads import Heads, find_heads
from coldpress.dataflow.partition import block_names
from coldpress.dataflow.probe import probe
from coldpress.dataflow.residual import Residual, final_products, find_residual
from coldpress.dataflow.rotate import Folding, RotationSite, rotate
from coldpress.dataflow.stream_bench import StreamBench, shell, unreached_outside
from coldpress.dataflow.unreached import same_place
from coldpress.dataflow.workbench import Workbench
from coldpress.errors import ModelError
from coldpress.layer_report import Note
from coldpress.modifier import TRANSFORMS, Modifier
from coldpress.numerics import TRANSFORM_TYPES, Rotation, TransformType
from coldpress.stage import Layer, Stage, find_layers
from coldpress.state import State

log = logging.getLogger(__name__)

_FOLDED = "folded_norms"  # note of a layer: what norms multiplied by whose readers are in a later stage


@frozen(eq=False)
class BlockRotations:
    """What probing finds of the rotations of a block, by names from the root of the model.

    Attributes:
        residual: how its residual stream can be rotated; or why it cannot.
        heads: its value projections and what reads them.
        last: layers whose outputs reach the output of the block, and whose inputs no fused rotation reaches.
        attention: modules whose attention can be tapped, and channels of a head of their queries and keys.
    """

    residual: Residual | str
    heads: tuple[Heads, ...]
    last: tuple[str, ...]
    attention: tuple[tuple[str, int], ...]

    def within(self, prefix: str) -> "BlockRotations":
        """The same, named from the module that holds the block as `prefix`."""
        head = f"{prefix}." if prefix else ""
        residual = self.residual if isinstance(self.residual, str) else self.residual.within(prefix)
        return BlockRotations(
            residual,
            tuple(one.within(prefix) for one in self.heads),
            tuple(head + name for name in self.last),
            tuple((head + name, size) for name, size in self.attention),
        )


def _as_plain(value: Any) -> Any:
    """A table, of an object of pydantic too."""
    return value.model_dump() if callable(getattr(value, "model_dump", None)) else value


def _dtype_name(value: Any) -> str:
    return str(value).removeprefix("torch.")


@frozen(kw_only=True, eq=False)
class Rotator(Modifier):
    """Base of modifiers that rotate activations, and undo it in weights, so that the model keeps its function.

    Attributes:
        transform_type: `hadamard`, `random-hadamard` (after random signs) or `random-matrix` (any orthogonal matrix).
        transform_block_size: channels that are mixed with each other; None for all.
        precision: understood and without effect: weights are rotated in float64, activations in float32 at least.
        transform_config: what llm-compressor makes of the other settings, and keeps beside them; it may say the same
            as they do, and nothing else.
    """

    traits: ClassVar[frozenset[str]] = frozenset({TRANSFORMS})
    notes: ClassVar[tuple[Note, ...]] = (
        Note("rotated", "", "whether the rotation is in the weights, is done online, or both"),
        Note(_FOLDED, "", "what norms multiplied by, until the stage of their readers is reached"),
    )

    transform_type: TransformType = field(default="hadamard", validator=in_(TRANSFORM_TYPES))
    transform_block_size: int | None = field(default=None, validator=optional(instance_of(int)))
    precision: Any = field(default="float64", converter=_dtype_name)

    transform_config: Any = field(default=None, converter=_as_plain)

    @precision.validator
    def _check_precision(self, attribute: object, value: str) -> None:
        if value not in ("float64", "float32", "bfloat16", "float16"):
            raise ValueError(f"must be a floating-point dtype of torch, such as float64; got {value!r}")

    @transform_block_size.validator
    def _check_block_size(self, attribute: object, value: int | None) -> None:
        if value is not None and value < 2:
            raise ValueError(f"must be 2 at least; got {value!r}")

    @transform_config.validator
    def _check_transform_config(self, attribute: object, value: Any) -> None:
        if value is None:
            return
        groups = value.get("config_groups") if isinstance(value, Mapping) else None
        groups = groups if isinstance(groups, Mapping) else {}
        own = {name.lower() for name in getattr(self, "rotations", ())}
        kinds = {group.get("type") if isinstance(group, Mapping) else None for group in groups.values()}
        if {str(name).lower() for name in groups} != own or kinds != {self.transform_type}:
            raise ValueError("says something else than rotations and transform_type, which are what is done: leave it")

    def check(self, state: State) -> None:
        """See that no online rotation would take the place of one that weights are rotated for.

        Raises:
            ModelError: it would.
        """
        for name, attachment in self.announced(state, Stage.whole(state.model)):
            for one in attachments_on(state.model.get_submodule(name)):
                if one.kind == attachment.kind:
                    raise ModelError(
                        f"{name} has an online rotation already ({one.kind}), of an earlier run, which that of "
                        f"{type(self).__name__} would replace: ignore the layer, or begin with the original model"
                    )


def rotate_layer(
    state: State, layer: Layer, online: OnlineRotation, *, dim: int, buffers: Mapping[str, Tensor] | None = None
) -> None:
    """Attach an online rotation to a layer, and rotate its weight: along its inputs (dim 1) or outputs (dim 0).

    Args:
        state: of the run.
        layer: the layer.
        online: the rotation.
        dim: of the weight, [O, I].
        buffers: of the rotation, where its matrix is stored.
    """
    buffers = buffers or {}
    stored = 1 - dim if "Conv1D" in layer.classes else dim
    sites = [RotationSite(f"{layer.name}.weight", stored)]
    if dim == 0 and layer.module._parameters.get("bias") is not None:
        sites.append(RotationSite(f"{layer.name}.bias", 0))
    rotation = online.undone(layer.weight.shape[dim], buffers)
    rotate(state.model, (), [(site, rotation) for site in sites])
    state.attach(layer, online, buffers)


def rotate_stage(
    state: State, stage: Stage, norms: Sequence[Any], rotations: Iterator[tuple[RotationSite, Rotation]]
) -> set[str]:
    """Fold norms and rotate parameters, as far as they are those of a stage.

    A norm whose readers are in a later stage leaves what it multiplied by in the report, where a resumed run finds it.

    Returns:
        Names of the modules whose parameters were changed.

    Raises:
        NumericsError: a norm cannot be folded.
    """
    own = {f"{name}.{part}" for name, module in stage.modules.items() for part in module._parameters}
    foldings = []
    for pair in norms:
        weight = pair.sites[0].parameter
        members = {member.site.parameter for member in pair.members}
        if weight in own:
            found = gain(state.model, pair)
            if not members <= own:
                _note_gain(state, stage, weight, found)
            foldings.append(Folding(pair, found))
        elif members & own:
            foldings.append(Folding(pair, _noted_gain(state, weight)))
    changed = rotate(state.model, foldings, rotations, only=own)
    for name in changed:
        state.clip_ranges.pop(name.rpartition(".")[0], None)
    return {name.rpartition(".")[0] for name in changed}


def rotations_of(state: State, block: str) -> BlockRotations:
    """What probing finds of a block, once for each kind of block in a run.

    Raises:
        ModelError: the block cannot be probed.
    """
    key, known = kind_of(state, block), state.fact(_Found).blocks
    if key not in known:
        known[key] = _probed(state, block)
    return known[key].within(block)


def read_without_call(state: State, block: str) -> tuple[str, ...]:
    """The linear layers of a block whose weights are read though nothing calls them, so that no hook of theirs acts.

    Looked at once for each kind of block in a run; none where the block cannot be run.
    """
    key, known = kind_of(state, block), state.fact(_Found).uncalled
    if key not in known:
        known[key] = _uncalled(state, block)
    head = f"{block}." if block else ""
    return tuple(head + name for name in known[key])


def stream_of(state: State) -> Residual:
    """How the residual stream of the model can be rotated: blocks and what is around them.

    Raises:
        ModelError: it cannot be; says where and why.
    """
    found = state.fact(_Found)
    if found.stream is None:
        found.stream = _stream(state)
    return found.stream


@define(eq=False)
class _Found:
    """What probing has found of a model."""

    model: nn.Module
    blocks: dict[Any, BlockRotations] = field(init=False, factory=dict)
    templates: dict[Any, Any] = field(init=False, factory=dict)
    uncalled: dict[Any, tuple[str, ...]] = field(init=False, factory=dict)
    stream: Residual | None = field(init=False, default=None)


def _probed(state: State, block: str) -> BlockRotations:
    flow, call = dataflow_of(state, block), call_of(state, block)
    if isinstance(flow, str) or isinstance(call, str):
        raise ModelError(
            f"{block or type(state.model).__name__} cannot be probed: {flow if isinstance(flow, str) else call}"
        )
    try:
        bench = StreamBench(state.model.get_submodule(block), call, seed=state.seed)
    except ModelError as error:
        raise ModelError(f"{block or type(state.model).__name__} cannot be probed: {error}") from error
    state.fact(_Found).templates[kind_of(state, block)] = bench.template()
    shared = shared_parameters(state.model, block)
    heads = tuple(one for one in find_heads(bench, flow) if not _is_shared(one, shared))
    last = tuple(name for name in _last(bench, flow, heads) if f"{name}.weight" not in shared)
    try:
        residual: Residual | str = find_residual(bench, flow)
    except ModelError as error:
        residual = str(error)
    if not isinstance(residual, str) and any(site.parameter in shared for site in residual.sites):
        residual = f"{next(iter(shared))} is shared with another block, and would be rotated twice"
    return BlockRotations(residual, heads, last, _attention(bench))


def _uncalled(state: State, block: str) -> tuple[str, ...]:
    call = call_of(state, block)
    if isinstance(call, str):
        return ()
    try:
        bench = Workbench(state.model.get_submodule(block), call, seed=state.seed)
    except ModelError:
        return ()
    called: set[str] = set()
    for name, layer in bench.layers().items():  # of a copy, so that no hook need be taken away
        layer.register_forward_pre_hook(lambda *_, name=name: called.add(name))
    read = {use.parameter for use in bench.run().uses}
    return tuple(name for name in bench.layers() if f"{name}.weight" in read and name not in called)


def _attention(bench: StreamBench) -> tuple[tuple[str, int], ...]:
    """Names of the modules whose attention can be tapped, and channels of a head of what it is called with."""
    found: dict[str, int] = {}

    def seen(name: str, module: nn.Module, states: AttentionStates) -> AttentionStates:
        found[name] = states.keys.shape[-1]
        return states

    with ExitStack() as taps:
        for name, module in attention_modules(dict(bench.block.named_modules())):
            taps.enter_context(attention_tapped(module, partial(seen, name)))
        bench.run()
    return tuple(found.items())


def _is_shared(heads: Heads, shared: Mapping[str, Any]) -> bool:
    return any(site.parameter in shared for site in (*heads.writers, *heads.readers))


def _last(bench: StreamBench, flow: Any, heads: Sequence[Heads]) -> tuple[str, ...]:
    """Layers of a block whose inputs only an online rotation reaches."""
    fused = {site.parameter for one in heads for site in one.readers}
    fused |= {member.site.parameter for pair in flow.pairs if pair.kind == "norm" for member in pair.members}
    layers = bench.layers()
    names = {bench.name(parameter) for parameter in final_products(bench) if parameter not in fused}
    names &= bench.module_inputs([name for name in layers if name in names]).keys()  # some read the weight of a layer
    names |= {name for name in flow.unreached if any(same_place(name, one) for one in names)}
    return tuple(name for name in layers if name in names)


def _stream(state: State) -> Residual:
    model, blocks = state.model, state.fact(block_names)
    if not blocks:
        raise ModelError(f"{type(model).__name__} has no list of blocks, so its residual stream is not found")
    parts, templates = [], {}
    for name in blocks:
        residual = rotations_of(state, name).residual
        if isinstance(residual, str):
            raise ModelError(f"the residual stream of {name} cannot be rotated: {residual}")
        parts.append(residual)
        templates[name] = state.fact(_Found).templates[kind_of(state, name)]
    batch = {**token_batch(model, seed=state.seed), "use_cache": False}
    batch = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in batch.items()}
    try:
        bench = StreamBench(shell(model, blocks, templates), Call((), batch), seed=state.seed)
        unreached = unreached_outside(bench.block, bench.reading)
        if unreached:
            raise ModelError(f"{unreached[0]} does not run on text, and may add to the residual stream or read it")
        parts.append(find_residual(bench, probe(bench, {})))
    except ModelError as error:
        raise ModelError(f"the residual stream outside of the blocks cannot be rotated: {error}") from error
    widths = {part.width for part in parts}
    if len(widths) > 1:
        raise ModelError(f"the residual stream is not of one width: {', '.join(map(str, sorted(widths)))}")
    return Residual(
        width=widths.pop(),
        readers=tuple(site for part in parts for site in part.readers),
        writers=tuple(site for part in parts for site in part.writers),
        norms=tuple(pair for part in parts for pair in part.norms),
        keeps_ones=any(part.keeps_ones for part in parts),
    )


def _note_gain(state: State, stage: Stage, weight: str, found: Tensor) -> None:
    home = next((layer.name for layer in stage.every_layer), None)
    if home is None:
        raise ModelError(f"{weight} is in a stage without layers, and what reads it in another: name other stages")
    notes: dict[str, Any] = state.report[home].notes
    notes[_FOLDED] = {**notes.get(_FOLDED, {}), weight: found.tolist()}


def _noted_gain(state: State, weight: str) -> Tensor:
    for line in state.report.values():
        folded: Mapping[str, Any] = line.notes.get(_FOLDED, {})
        if weight in folded:
            return torch.tensor(folded[weight], dtype=torch.float64)
    raise ModelError(f"what {weight} multiplied by is not known: its stage comes after that of its readers")


def forget_gains(state: State) -> None:
    """Take from the report what only the run needed."""
    for line in state.report.values():
        line.notes.pop(_FOLDED, None)


def layers_outside(stage: Stage) -> list[str]:
    """Names of the layers of a model that are in none of its blocks: embeddings, heads, projections."""
    root = stage.modules.get("")
    inside = tuple(f"{name}." for name in block_names(root)) if root is not None else ()
    return [layer.name for layer in find_layers(stage.modules.items()) if not layer.name.startswith(inside)]
