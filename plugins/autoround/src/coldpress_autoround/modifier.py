"""AutoRoundModifier: settings and wiring of learned rounding."""

import logging
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from attrs import evolve, field, frozen
from attrs.validators import ge, gt, in_, optional
from torch import Tensor

from coldpress.numerics import search_range, ungrouped
from coldpress.plugin import (
    CalibrationError,
    Layer,
    Needs,
    Note,
    QuantizationArgs,
    Quantized,
    Quantizer,
    Stage,
    State,
    hookimpl,
    weight_range,
)
from coldpress_autoround.algorithm.rounding import Fixed, Learned, beginning, codes_of, fixed, rounded
from coldpress_autoround.algorithm.start import gptq_codes
from coldpress_autoround.block import Block
from coldpress_autoround.descent import Outcome, Schedule, descend

log = logging.getLogger(__name__)

LEAST = 0.325
"""Share of its range to which a group is shrunk at most where the start is searched."""

FIRMNESS = 0.0
"""How far offsets that lead to GPTQ's codes reach beyond the border to the nearest other code, in units."""


_STATISTICS = {"searched": "second_moment", "gptq": "gram"}  # that a start needs
_BEGUN = {
    "rtn": "rounded to nearest",
    "searched": "rounded to nearest in searched ranges",
    "gptq": "solved as GPTQ does",
}


@frozen(kw_only=True, eq=False)
class AutoRoundModifier(Quantizer):
    """Learn how weights are rounded and how far scales reach, by signed gradient descent, block by block.

    A block is shown the outputs of the compressed blocks before it, and learns to say what the original model's block
    says (SignRound, arXiv 2309.05516).
    Further settings are those of `Quantizer`: `scheme` or `config_groups`, `targets`, `ignore`, observers.
    Layers outside of blocks, embeddings and experts that no token reached are not learned.

    Attributes:
        iters: steps of descent for each block; 0 leaves everything as it starts.
        batch_size: samples that a step sees, at least; batches of calibration data are not divided.
        lr: length of the first step of the offsets, in units of the grid; None for 1 / iters.
        minmax_lr: length of the first step of the factors of ranges; None for `lr`.
        start: `rtn` begins at rounding to nearest with the observer's ranges, `searched` with ranges that lose least
            under the activity of the columns, `gptq` with those at the codes that GPTQ finds; None for `searched`, and
            for `rtn` where `iters` is 0.
        enable_torch_compile: understood and without effect: gradients of the quantizer are in closed form.
        device_ids: understood and without effect: a block is tuned where the model is.
        disable_opt_rtn: understood and without effect: `start` says where ranges come from.
    """

    notes: ClassVar[tuple[Note, ...]] = (
        Note("block_error", "squared, a number", "error of the block's outputs after the descent"),
        Note("block_error_at_start", "squared, a number", "that error before the first step"),
        Note("codes_moved", "of the codes", "share that is not the nearest one any more"),
    )

    iters: int = field(default=200, validator=ge(0))
    batch_size: int = field(default=8, validator=ge(1))
    lr: float | None = field(default=None, validator=optional(gt(0)))
    minmax_lr: float | None = field(default=None, validator=optional(gt(0)))
    start: Literal["rtn", "searched", "gptq"] | None = field(
        default=None, validator=optional(in_(("rtn", "searched", "gptq")))
    )
    enable_torch_compile: bool = True
    device_ids: str | None = None
    disable_opt_rtn: bool = False

    def needs(self) -> Needs:
        """Data where something is learned or searched; the calls of each block, with gradients and as they were."""
        base = super().needs()
        if not self.iters:
            return evolve(base, data=base.data or self.starts() != "rtn")
        return evolve(
            base,
            data=True,
            propagated_error=True,
            original_inputs=True,
            original_weights=True,
            calls=True,
            gradients=True,
            whole_stage=True,
        )

    def starts(self) -> str:
        """Where descent begins."""
        return self.start or ("searched" if self.iters else "rtn")

    def takes_whole_range(self, state: State, layer: Layer) -> bool:
        """Only where it rounds to nearest: else it searches for ranges, or learns them."""
        return not self.iters and self.starts() == "rtn" and super().takes_whole_range(state, layer)

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Ask for the activity of columns, or for Gram matrices, where the start needs them."""
        super().initialize(state, stage)
        which = _STATISTICS.get(self.starts())
        for layer in self.planned(state, stage):
            if which is not None and _weights(state, layer) is not None and "Linear" in layer.classes:
                state.request(layer, which)

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Round the weights of the stage, as learned where it is a block."""
        tuned = list[Layer]()
        for layer in self.planned(state, stage):
            if _weights(state, layer) is None:
                state.set_quantized(layer, self.quantized(state, layer))
            elif "Linear" not in layer.classes:
                self._leave(state, layer, reason="an embedding is called with token ids")
            else:
                tuned.append(layer)
        if self.iters and tuned and _is_called(state, stage):
            with state.timed(*tuned):
                self._tune(state, stage, tuned)
            return
        reason = f"{stage.name} is no block, whose outputs could be learned" if self.iters else None
        for layer in tuned:
            with state.timed(layer):
                self._leave(state, layer, reason=reason)

    def _tune(self, state: State, stage: Stage, layers: Sequence[Layer]) -> None:
        """Learn the rounding of the layers of a block, all of them together."""
        inputs = [(layer, self.quantized(state, layer)) for layer in layers]
        weights = {layer: self._fixed(state, layer) for layer in layers}
        start = {layer: self._beginning(state, layer, weights[layer]) for layer in layers}
        block = Block.of(state, stage, inputs)
        found = descend(block, weights, start, self._schedule(), seed=torch.initial_seed())
        log.info("%s: squared error of outputs %.4g, at the start %.4g", stage.name, found.after, found.before)
        for layer, quantized in inputs:
            self._write(state, layer, quantized, (weights[layer], start[layer]), found)

    def _write(
        self, state: State, layer: Layer, quantized: Quantized, begun: tuple[Fixed, Learned], found: Outcome
    ) -> None:
        """Make what was learned what the layer is, and report it."""
        weight, start = begun
        first, last = rounded(weight, start), rounded(weight, found.learned[layer])
        state.set_quantized(layer, _encoded(quantized, weight, found.learned[layer]))
        if layer not in found.reached:
            data = "samples that were learned from" if self._is_seen(state, layer) else "calibration data"
            state.fall_back(layer, f"{self._begun(state, layer)}: no token of the {data} reached it")
            return
        state.report[layer.name].notes |= {
            "block_error": found.after,
            "block_error_at_start": found.before,
            "codes_moved": round(float((first.codes != last.codes).float().mean()), 4),
        }

    def _leave(self, state: State, layer: Layer, *, reason: str | None) -> None:
        """Round a layer as descent would start, and say so where more was asked for."""
        if self.starts() == "rtn" or "Linear" not in layer.classes:
            state.set_quantized(layer, self.rounded(state, layer))
        else:
            weight = self._fixed(state, layer)
            learned = self._beginning(state, layer, weight)
            state.set_quantized(layer, _encoded(self.quantized(state, layer), weight, learned))
        if reason is not None:
            state.fall_back(layer, f"{self._begun(state, layer)}: {reason}")

    def _is_seen(self, state: State, layer: Layer) -> bool:
        """Whether calibration data are not known to have missed it."""
        which = _STATISTICS.get(self.starts())
        return which is None or state.statistic(layer, which) is not None

    def _begun(self, state: State, layer: Layer) -> str:
        """What a layer is that was not learned."""
        if "Linear" not in layer.classes or not self._is_seen(state, layer):
            return "rounded to nearest"
        return f"{_BEGUN[self.starts()]} and not learned"

    def _fixed(self, state: State, layer: Layer) -> Fixed:
        """The layer's weight with the ranges that descent starts from."""
        args, factor = _weights(state, layer), self.global_scale(state, layer)
        assert args is not None
        activity = self._activity(state, layer)
        if activity is None or args.observer is not None:
            importance = self.importance(state, layer)
            low, high = weight_range(layer.weight, args, global_scale=factor, importance=importance)
        else:
            low, high = search_range(layer.weight, args, activity, least=LEAST, global_scale=factor)
        return fixed(layer.weight, low, high, args, global_scale=factor)

    def _activity(self, state: State, layer: Layer) -> Tensor | None:
        """What errors of columns cost a search for ranges, [I]; None where it is not asked for, or no token came."""
        if self.starts() == "searched":
            seen = state.statistic(layer, "second_moment")
            return None if seen is None else seen.mean
        seen = state.statistic(layer, "gram") if self.starts() == "gptq" else None
        return None if seen is None else seen.total.diagonal().clamp(min=0)

    def _beginning(self, state: State, layer: Layer, weight: Fixed) -> Learned:
        """What is learned of a layer at first; rounding to nearest where GPTQ finds no codes."""
        start = beginning(weight)
        seen = state.statistic(layer, "gram") if self.starts() == "gptq" else None
        if seen is None:
            return start
        found = rounded(weight, start)
        scale, point = (
            ungrouped(part.float()[..., None].expand_as(weight.weight), weight.shape, weight.args)
            for part in (found.step, found.zero_point)
        )
        codes = gptq_codes(layer.weight, seen.total, weight.args, scale=scale, zero_point=point)
        return start if codes is None else beginning(weight, codes, firmness=FIRMNESS)

    def _schedule(self) -> Schedule:
        lr = self.lr or 1 / self.iters
        return Schedule(iters=self.iters, batch_size=self.batch_size, lr=lr, minmax_lr=self.minmax_lr or lr)


def _encoded(quantized: Quantized, weight: Fixed, learned: Learned) -> Quantized:
    """The layer with the codes of its weight."""
    found = rounded(weight, learned)
    return evolve(quantized, codes=codes_of(weight, found), scale=found.scale, zero_point=found.zero_point)


def _is_called(state: State, stage: Stage) -> bool:
    """Whether the pipeline holds calls of the stage: it is a block, or the whole model."""
    try:
        return next(iter(state.calls(stage)), None) is not None
    except CalibrationError:
        return False


def _weights(state: State, layer: Layer) -> QuantizationArgs | None:
    scheme = state.scheme_of(layer)
    return None if scheme is None else scheme.weights
