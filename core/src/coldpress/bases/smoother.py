"""Smoother: the settings and the wiring that every modifier shares that moves per-channel scales between layers."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from attrs import field, frozen
from torch import Tensor, nn

from coldpress.bases.probing import dataflow_of
from coldpress.dataflow import Pair, fold, parse_mappings, plain_mapping, resolve_in, unmatched
from coldpress.dataflow.partition import block_names
from coldpress.errors import ModelError, NumericsError, must_implement
from coldpress.hookspecs import hookimpl
from coldpress.layer_report import Note
from coldpress.modifier import SPARES_QUANTIZED, TRANSFORMS, Modifier, Needs
from coldpress.numerics import check_finite
from coldpress.stage import Layer, Stage, class_names
from coldpress.state import State
from coldpress.statistic import Statistic

log = logging.getLogger(__name__)


@frozen(eq=False)
class Smoothing:
    """A producer of a stage and those of its readers that count.

    Attributes:
        pair: named from the root of the model.
        layers: readers whose inputs and weights decide about the scale; the others only have it undone.
        readers: every reader that is a layer.
    """

    pair: Pair
    layers: tuple[Layer, ...]
    readers: tuple[Layer, ...]


def _plain_mappings(value: list[Any] | None) -> list[Any] | None:
    return [plain_mapping(entry) for entry in value] if isinstance(value, list | tuple) else value


@frozen(kw_only=True, eq=False)
class Smoother(Modifier):
    """Base of modifiers that divide channels by a scale where they are made, and undo it where they are read.

    A subclass says which statistics it needs, and which scale a pair gets; pairs are found, folded and reported here.
    A pair has a producer (a norm, a linear layer, a stack of experts) and all of its readers.
    It comes from probing, or from `mappings` that probing has found to be true, so that the model keeps its function.

    Attributes:
        mappings: `[[readers], producer]` each, or `{balance_layers: ..., smooth_layer: ...}`, in names, `re:` patterns
            or class names; None takes every pair that probing finds.
        targets: readers that count, in the same forms.
        ignore: readers that do not count, and producers that are left alone.
    """

    traits: ClassVar[frozenset[str]] = frozenset({TRANSFORMS, SPARES_QUANTIZED})
    notes: ClassVar[tuple[Note, ...]] = (
        Note("smoothed_in", "", "the module that takes up the scales of its inputs"),
        Note("largest_scale", "", "what the input channel that is scaled most is divided by"),
        Note("not_smoothed", "", "why its inputs are not smoothed"),
    )

    mappings: list[Any] | None = field(default=None, converter=_plain_mappings)

    @mappings.validator
    def _check_mappings(self, attribute: object, value: Any) -> None:
        parse_mappings([] if value is None else value)

    def statistics(self, smoothing: Smoothing) -> Iterable[str | Statistic]:
        """What must be known of the inputs of the layers that count."""
        raise must_implement(self, "statistics(smoothing)")

    def scale(self, state: State, smoothing: Smoothing) -> Tensor | str:
        """In `finalize`: what the channels of a pair are divided by, [C], positive; or why they are left alone."""
        raise must_implement(self, "scale(state, smoothing)")

    def layers(self, stage: Stage) -> list[Layer]:
        """The layers that are meant and lie in a block: no other has a producer that is looked at."""
        found = super().layers(stage)
        root = stage.modules.get("")
        heads = tuple(f"{name}." for name in block_names(root)) if root is not None else ()
        return [layer for layer in found if "Linear" in layer.classes and (not heads or layer.name.startswith(heads))]

    def needs(self) -> Needs:
        """Data; scales that are found on the outputs of the original blocks are as good."""
        return Needs(data=True, propagated_error=False)

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Look for the pairs of the stage, and ask for what their scales are made of.

        Raises:
            TargetError: a mapping matches nothing, or is not true.
        """
        for smoothing in self.smoothings(state, stage):
            for layer in smoothing.layers:
                for statistic in self.statistics(smoothing):
                    state.request(layer, statistic)

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Fold a scale into every pair of the stage, one after the other."""
        for smoothing in self.smoothings(state, stage):
            with state.timed(*smoothing.layers):
                problem = _fixed(state, smoothing.pair)
                if problem is None:
                    scale = self.scale(state, smoothing)
                    problem = scale if isinstance(scale, str) else smooth(state, smoothing, scale)
            if problem is not None:
                leave(state, smoothing.layers, f"{smoothing.pair.producer}: {problem}")

    def smoothings(self, state: State, stage: Stage) -> list[Smoothing]:
        """The pairs of the stage that have a reader which counts; layers in no pair get a reason in their report."""
        if self.mappings is not None:
            unmatched(state.model, self.mappings)
        found: list[Smoothing] = []
        every = {layer.name: layer for layer in stage.every_layer}
        claimed = [layer for layer in self.layers(stage) if not state.plan or layer.name in state.plan]
        leave(state, [layer for layer in self.layers(stage) if layer not in claimed], "no later modifier quantizes it")
        for name in _blocks_within(state, stage):
            found += self._of_block(state, name, [one for one in claimed if _is_within(one.name, name)], every)
        return found

    def _of_block(
        self, state: State, name: str, claimed: Sequence[Layer], every: Mapping[str, Layer]
    ) -> list[Smoothing]:
        block = state.model.get_submodule(name)
        counting = {layer.name: layer for layer in claimed}
        if not counting:
            return []
        flow = dataflow_of(state, name)
        if isinstance(flow, str):
            if self.mappings is not None:
                raise ModelError(f"{name or type(block).__name__}: mappings cannot be checked: {flow}")
            log.warning("nothing in %s is smoothed: %s", name or type(block).__name__, flow)
            leave(state, counting.values(), flow)
            return []
        pairs = flow.pairs if self.mappings is None else resolve_in(block, flow, self.mappings, prefix=name)
        found = []
        head = f"{name}." if name else ""
        reasons = {layer: flow.unpaired.get(layer.removeprefix(head), "no mapping names it") for layer in counting}
        for pair in (one.within(name) for one in pairs):
            layers = tuple(counting[reader] for reader in pair.consumers if reader in counting)
            if layers and not self._ignores(state.model, pair):
                readers = tuple(every[reader] for reader in pair.consumers if reader in every)
                found.append(Smoothing(pair, layers, readers))
            else:
                reasons |= {layer.name: f"{pair.producer}, which makes its input, is ignored" for layer in layers}
        served = {layer.name for one in found for layer in one.layers}
        for layer in counting.values():
            if layer.name not in served:
                leave(state, [layer], reasons[layer.name])
        return found

    def _ignores(self, model: nn.Module, pair: Pair) -> bool:
        """Whether the producer, or the owner of a stack of experts, is to be left alone."""
        owner = pair.sites[0].parameter.rpartition(".")[0]
        module = model.get_submodule(owner)
        return Layer(owner, module, class_names(module)).matches(self.ignore)


def smooth(state: State, smoothing: Smoothing, scale: Tensor) -> str | None:
    """Fold a scale into a pair, let the statistics follow, and report it; or say why that cannot be.

    Args:
        state: of the run.
        smoothing: the pair.
        scale: what its channels are divided by, [C], positive.
    """
    pair, model = smoothing.pair, state.model
    if not bool((scale.isfinite() & (scale > 0)).all()):
        return "no finite scale fits its activations and weights"
    scale = _as_stored(model, pair, scale)
    names = _parameters(pair)
    before = {name: model.get_parameter(name).detach().clone() for name in sorted(names)}
    fold(model, pair, scale)
    for name in names:
        state.clip_ranges.pop(name.rpartition(".")[0], None)
    try:
        for name in before:
            check_finite(name, model.get_parameter(name))
    except NumericsError:
        for name, value in before.items():
            model.get_parameter(name).copy_(value)
        return f"a weight would leave the range of {next(iter(before.values())).dtype}"
    state.transform_original(lambda: fold(model, pair, scale))
    state.statistics.forget_attention(site.parameter for site in pair.sites)
    for layer in smoothing.readers:
        state.rescale_inputs([layer], pair.spread(scale, layer.name).float())
    for layer in smoothing.readers:
        state.report[layer.name].notes |= {"smoothed_in": pair.producer, "largest_scale": float(scale.max())}
    return None


def _parameters(pair: Pair) -> set[str]:
    """Names of the parameters that a scale changes."""
    return {site.parameter for site in pair.sites} | {member.site.parameter for member in pair.members}


def _fixed(state: State, pair: Pair) -> str | None:
    """Why a pair must stay as it is: a modifier before this one has quantized a part of it."""
    owners = sorted(parameter.rpartition(".")[0] for parameter in _parameters(pair))
    fixed = next((name for name in owners if name in state.quantized), None)
    return None if fixed is None else f"{fixed} is quantized already, and its codes would not follow a scale"


def leave(state: State, layers: Iterable[Layer], reason: str) -> None:
    """Note why the inputs of some layers are not smoothed."""
    for layer in layers:
        state.report[layer.name].notes["not_smoothed"] = reason
        if layer.name not in state.plan:
            state.skip(layer, f"not smoothed: {reason}")
        log.debug("%s is not smoothed: %s", layer.name, reason)


def _blocks_within(state: State, stage: Stage) -> list[str]:
    """The blocks that lie in a stage; the model itself where it has none."""
    blocks = state.fact(block_names)
    return [name for name in blocks if name in stage.modules] if blocks else [""]


def _is_within(layer: str, block: str) -> bool:
    return not block or layer.startswith(f"{block}.")


def _as_stored(model: nn.Module, pair: Pair, scale: Tensor) -> Tensor:
    """What the weight of a norm will have been divided by, once it is rounded to its dtype, [C] float64.

    Readers then undo exactly this, and a channel is not off by the rounding of one number.
    """
    scale = scale.double()
    site = pair.sites[0]
    parameter = model.get_parameter(site.parameter).detach()
    if pair.kind != "norm":
        return scale
    rows = pair.rows.to(parameter.device)
    old = parameter.double()[rows] + site.offset  # [C]
    new = (old / scale - site.offset).to(parameter.dtype).double() + site.offset  # [C]
    return torch.where((new * old > 0) & new.isfinite(), old / new, scale)
