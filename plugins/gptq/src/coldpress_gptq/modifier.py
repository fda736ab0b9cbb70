"""GPTQModifier: settings and wiring of GPTQ."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from attrs import evolve, field, frozen
from attrs.validators import ge, gt, in_, optional
from torch import Tensor

from coldpress import (
    READS_DATA,
    Layer,
    QuantizationArgs,
    Quantizer,
    SchemeError,
    Stage,
    State,
    hookimpl,
    note_fit,
    weight_qparams,
)
from coldpress_gptq.algorithm import Prepared, gptq, measured, prepare, searched_qparams
from coldpress_gptq.asymmetry import gptaq_weights, qronos_weights
from coldpress_gptq.cross import Cross
from coldpress_gptq.magr import shrink_ranges
from coldpress_gptq.refit import has_own_scales, refitted

PRUNED = 0.2
"""From this share of zeros on a layer counts as pruned."""


def _to_order(value: Any) -> Any:
    """`static` and `weight` are two words for one order."""
    return "static" if value == "weight" else value


@frozen(kw_only=True, eq=False)
class GPTQModifier(Quantizer):
    """Quantize weights so that the outputs of each layer, for the calibration data, change least.

    Further settings are those of `Quantizer`: `scheme` or `config_groups`, `targets`, `ignore`, observers.
    Where no observer of weights is named, scales are searched under the activity of the columns.

    Attributes:
        block_size: columns whose errors are carried on together; speed, not the result, depends on it.
        dampening_frac: share of the mean diagonal of the Gram matrix that is added to its diagonal.
        actorder: `static` (also called `weight`) rounds columns from the most to the least active one, with scales
            and order on disk as ever; None rounds from left to right.
        correction: `gptaq` or `qronos` make up for what compressed layers before have changed in a layer's inputs, as
            far as its weights can; None aims at the outputs for the inputs as they are.
        magr_alpha: what the range of a group costs MagR, which shrinks ranges before the first column is rounded; None
            leaves weights as they are.
        refit_scales: scales are fitted to the codes once those are chosen.
        preserve_sparsity_mask: zeros stay zeros; None keeps them where a fifth of the weights or more are zero.
        offload_hessians: understood and without effect: Gram matrices live no longer than their stage.
        batched_quantization: understood and without effect: layers that read the same input are solved together.
    """

    traits: ClassVar[frozenset[str]] = Quantizer.traits | {READS_DATA}

    block_size: int = field(default=128, validator=ge(1))
    dampening_frac: float = field(default=0.01, validator=ge(0))
    actorder: Literal["static", "weight"] | None = field(
        default="static", converter=_to_order, validator=in_(("static", None))
    )
    correction: Literal["gptaq", "qronos"] | None = field(default=None, validator=in_((None, "gptaq", "qronos")))
    magr_alpha: float | None = field(default=None, validator=optional(gt(0)))
    refit_scales: bool = field(default=False)
    preserve_sparsity_mask: bool | None = None
    offload_hessians: bool = False
    batched_quantization: int | Literal["auto"] | None = "auto"

    @refit_scales.validator
    def _check_refit(self, attribute: object, value: bool) -> None:
        for scheme in self.schemes() if value else []:
            if scheme.weights is not None and not has_own_scales(scheme.weights):
                raise SchemeError(
                    "refit_scales is for weights with a scale for each channel or group, in the dtype of the weight; "
                    f"this scheme has strategy {scheme.weights.strategy!r} and scale_dtype {scheme.weights.scale_dtype}"
                )

    def needs_data(self) -> bool:
        """Always."""
        return True

    def compares(self) -> bool:
        """Where it corrects."""
        return self.correction is not None

    def follows_error(self) -> bool:
        """Where it corrects, and as others do."""
        return self.correction is not None or super().follows_error()

    def takes_whole_range(self, layer: Layer) -> bool:
        """Never: its columns make up for errors against the weights that it is shown."""
        return False

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Ask for the Gram matrices of inputs."""
        super().initialize(state, stage)
        for layer in self.layers(stage):
            if self._weights(layer) is not None:
                state.ask(layer, "gram")
                if self.correction is not None:
                    state.ask(layer, Cross())

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Round the weights of the stage, layers that read the same input together."""
        rounded = []
        for layer in self.layers(stage):
            if self._weights(layer) is None:
                state.set_quantized(layer, self.quantized(state, layer))
            else:
                rounded.append(layer)
        for layers in state.sharing(rounded):
            gram = state.statistic(layers[0], "gram")
            with state.timed(*layers):
                if gram is None:
                    self._round(state, layers, reason="no token of the calibration data reached it")
                else:
                    self._solve(state, layers, gram.total, gram.count)

    def _solve(self, state: State, layers: Sequence[Layer], gram: Tensor, tokens: int) -> None:
        """GPTQ for layers that read the same input, those with the same scheme in one go."""
        prepared = prepare(gram, dampening_frac=self.dampening_frac, by_activity=self.actorder is not None)
        if prepared.factor is None:
            self._round(state, layers, reason="the Gram matrix of its inputs is not positive definite", by=prepared)
            return
        for together in self._alike(layers):
            args = self._weights(together[0])
            assert args is not None
            keep_zeros = self._keeps_zeros([layer.weight for layer in together])
            aims = self._aims(state, together, prepared, keep_zeros)
            weights = aims if self.magr_alpha is None else self._shrunk(aims, gram, args, keep_zeros)
            factors = [self.global_scale(state, layer) for layer in together]
            qparams = [
                self._qparams(weight, args, prepared.importance, factor)
                for weight, factor in zip(weights, factors, strict=True)
            ]
            effective = [
                (scale if factor is None else scale / factor, point)
                for (scale, point), factor in zip(qparams, factors, strict=True)
            ]
            solutions = gptq(weights, effective, prepared, args, block_size=self.block_size, keep_zeros=keep_zeros)
            losses = []
            for layer, aim, params, units, solution in zip(together, aims, qparams, effective, solutions, strict=True):
                if self.magr_alpha is not None:
                    solution = measured(solution.codes, aim, units, prepared, args)
                scale, point = params
                if self.refit_scales:
                    scale, solution = refitted(aim, solution, params, prepared, args)
                quantized = evolve(self.quantized(state, layer), codes=solution.codes, scale=scale, zero_point=point)
                state.set_quantized(layer, quantized)
                losses.append(float(solution.loss.sum()))
            note_fit(state, together, tokens=tokens, dampening=prepared.factor.dampening, losses=losses)

    def _aims(self, state: State, layers: Sequence[Layer], prepared: Prepared, keep_zeros: bool) -> list[Tensor]:
        """Weights whose outputs are wanted, in their dtype: those of the layers, corrected where that is asked for."""
        weights = [layer.weight for layer in layers]
        if self.correction is None:
            return weights
        cross = state.require(layers[0], Cross())
        correct = gptaq_weights if self.correction == "gptaq" else qronos_weights
        found = [correct(weight, cross, prepared).to(weight.dtype) for weight in weights]
        return [new * (old != 0) for new, old in zip(found, weights, strict=True)] if keep_zeros else found

    def _shrunk(
        self, weights: Sequence[Tensor], gram: Tensor, args: QuantizationArgs, keep_zeros: bool
    ) -> list[Tensor]:
        """What MagR makes of weights that read the same input, in their dtype."""
        assert self.magr_alpha is not None
        shrunk = shrink_ranges(torch.cat(list(weights)), gram, args, alpha=self.magr_alpha, keep_zeros=keep_zeros)
        return list(torch.split(shrunk.to(weights[0].dtype), [len(weight) for weight in weights]))

    def _round(self, state: State, layers: Sequence[Layer], *, reason: str, by: Prepared | None = None) -> None:
        """Round to nearest, where GPTQ cannot."""
        for layer in layers:
            args = self._weights(layer)
            assert args is not None
            importance = None if by is None else by.importance
            qparams = self._qparams(layer.weight, args, importance, self.global_scale(state, layer))
            state.set_quantized(layer, self.rounded(state, layer, qparams))
            state.fall_back(layer, f"rounded to nearest: {reason}")

    def _qparams(
        self, weight: Tensor, args: QuantizationArgs, importance: Tensor | None, global_scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Scale and zero point, from the search, or where that knows nothing or an observer is named, from that."""
        if args.observer is not None or importance is None:
            return weight_qparams(weight, args, global_scale=global_scale, importance=importance)
        return searched_qparams(weight, args, importance, global_scale=global_scale)

    def _alike(self, layers: Sequence[Layer]) -> list[list[Layer]]:
        """Layers with the same scheme, dtype and care for zeros, side by side."""
        groups: dict[object, list[Layer]] = {}
        for layer in layers:
            key = (self._weights(layer), layer.weight.dtype, self._keeps_zeros([layer.weight]))
            groups.setdefault(key, []).append(layer)
        return list(groups.values())

    def _keeps_zeros(self, weights: Sequence[Tensor]) -> bool:
        if self.preserve_sparsity_mask is not None:
            return self.preserve_sparsity_mask
        return all(weight.count_nonzero() < (1 - PRUNED) * weight.numel() for weight in weights)

    def _weights(self, layer: Layer) -> QuantizationArgs | None:
        return self._scheme(layer).weights
