"""GPTQModifier: settings and wiring of GPTQ."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from attrs import evolve, field, frozen
from attrs.validators import ge, gt, in_, instance_of, lt, optional
from torch import Tensor

from coldpress.plugin import (
    GUIDANCE,
    Cost,
    Gram,
    Labels,
    Layer,
    Needs,
    QuantizationArgs,
    Quantizer,
    SchemeError,
    Stage,
    State,
    guided,
    guiding,
    hookimpl,
    note_fit,
    weight_qparams,
)
from coldpress_gptq.algorithm.asymmetry import gptaq_weights, qronos_weights
from coldpress_gptq.algorithm.foem import foem_feedback
from coldpress_gptq.algorithm.magr import shrink_ranges
from coldpress_gptq.algorithm.refit import has_own_scales, refitted
from coldpress_gptq.algorithm.solver import Prepared, Problem, Solution, gptq, measured, prepare, searched_qparams
from coldpress_gptq.cross import Cross
from coldpress_gptq.outcome import Outcome, Rounded, joined
from coldpress_gptq.readers import Readers, batches_of, divided

TWO_STREAMS = ("gptaq", "qronos")
"""Corrections that compare inputs with those of the original model."""

PRUNED = 0.2
"""From this share of zeros on a layer counts as pruned."""


def _to_order(value: Any) -> Any:
    """`static` and `weight` are two words for one order."""
    return "static" if value == "weight" else value


def _check_batch(instance: object, attribute: Any, value: Any) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value not in ("auto", None) and not whole:
        raise ValueError(f"batched_quantization must be 'auto', a number from 1 on, or null; got {value!r}")


@frozen(kw_only=True, eq=False)
class GPTQModifier(Quantizer):
    """Quantize weights so that the outputs of each layer, for the calibration data, change least.

    Further settings are those of `Quantizer`: `scheme` or `config_groups`, `targets`, `ignore`, observers.
    Without a scheme it quantizes, of the layers that it targets, those that a quantizer before it has a scheme for.
    Where no observer of weights is named, scales are searched under the activity of the columns.
    Embeddings are rounded to nearest: they are called with token ids, which have no Gram matrix.

    Attributes:
        block_size: columns whose errors are carried on together; speed, not the result, depends on it.
        dampening_frac: share of the mean diagonal of the Gram matrix that is added to its diagonal.
        actorder: `static` (also called `weight`) rounds columns from the most to the least active one, with scales
            and order on disk as ever; None rounds from left to right.
        correction: `gptaq` or `qronos` make up for what compressed layers before have changed in a layer's inputs, as
            far as its weights can; `foem` takes back a share of what earlier columns moved a column by; None aims at
            the outputs for the inputs as they are.
        foem_beta: that share, of `correction: foem`; 0 is GPTQ.
        guidance: tokens count by what an error in their outputs costs the model's loss, by labels "sampled" from the
            model or of the "data"; it takes a pass forwards and backwards through the model first.  None counts all
            tokens alike.
        guidance_groups: parts that the rows of each layer are cut into, neighbours together; a token counts for each
            by what errors in its outputs cost, so each has a Gram matrix of its own, and is solved by itself.
        magr_alpha: what the range of a group costs MagR, which shrinks ranges before the first column is rounded; None
            leaves weights as they are.
        refit_scales: scales are fitted to the codes once those are chosen.
        preserve_sparsity_mask: zeros stay zeros; None keeps them where a fifth of the weights or more are zero.
        offload_hessians: understood and without effect: Gram matrices live no longer than their stage.
        batched_quantization: inputs whose layers are solved together where they have one shape, as experts do; `auto`
            for up to 16384 rows, None for one input after the other.  Speed and memory, not the result, depend on it.
    """

    block_size: int = field(default=128, validator=ge(1))
    dampening_frac: float = field(default=0.01, validator=ge(0))
    actorder: Literal["static", "weight"] | None = field(
        default="static", converter=_to_order, validator=in_(("static", None))
    )
    correction: Literal["gptaq", "qronos", "foem"] | None = field(
        default=None, validator=in_((None, "gptaq", "qronos", "foem"))
    )
    foem_beta: float = field(default=0.2, validator=[ge(0), lt(1)])
    guidance: Labels | None = field(default=None, validator=in_(GUIDANCE))
    guidance_groups: int = field(default=1, validator=[instance_of(int), ge(1)])
    magr_alpha: float | None = field(default=None, validator=optional(gt(0)))
    refit_scales: bool = field(default=False)
    preserve_sparsity_mask: bool | None = None
    offload_hessians: bool = False
    batched_quantization: int | Literal["auto"] | None = field(default="auto", validator=_check_batch)

    @actorder.validator
    def _check_order(self, attribute: object, value: object) -> None:
        ordered = [scheme for scheme in self.schemes() if scheme.weights is not None and scheme.weights.actorder]
        if value is None and ordered:
            raise SchemeError(
                "actorder is null, and weights of config_groups have actorder 'weight': drop one of the two"
            )

    @correction.validator
    def _check_correction(self, attribute: object, value: object) -> None:
        if value in TWO_STREAMS and self.guidance is not None:
            raise ValueError(
                "correction and guidance: the correction would weight tokens otherwise; drop one of the two"
            )

    @guidance_groups.validator
    def _check_groups(self, attribute: object, value: int) -> None:
        if value > 1 and self.guidance is None:
            raise ValueError("guidance_groups cuts what guidance weights: name guidance too, or drop it")
        for scheme in self.schemes() if value > 1 else []:
            _check_rows(scheme.weights, "weights")

    @refit_scales.validator
    def _check_refit(self, attribute: object, value: bool) -> None:
        for scheme in self.schemes() if value else []:
            if scheme.weights is not None and not has_own_scales(scheme.weights):
                raise SchemeError(
                    "refit_scales is for weights with a scale for each channel or group, in the dtype of the weight; "
                    f"this scheme has strategy {scheme.weights.strategy!r} and scale_dtype {scheme.weights.scale_dtype}"
                )

    def needs_no_scheme(self) -> bool:
        """It takes those of the quantizers before it."""
        return True

    def adopts(self, layer: Layer) -> bool:
        """Every linear layer, where it has no scheme of its own."""
        return not self.schemes() and "Linear" in layer.classes

    def needs(self) -> Needs:
        """Data; propagated error by scheme, and where that is another's; where it corrects, original inputs too."""
        base, corrects = super().needs(), self.correction in TWO_STREAMS
        propagated = corrects or base.propagated_error or not self.schemes()
        return evolve(
            base,
            data=True,
            original_inputs=corrects,
            propagated_error=propagated,
            loss_gradients=guiding(self.guidance, groups=self.guidance_groups),
        )

    def check(self, state: State) -> None:
        """Refuse groups of rows where the quantizer before has a scheme whose rows share a scale.

        Raises:
            SchemeError: names the layer and the strategy.
        """
        for layer in self.planned(state, Stage.whole(state.model)) if self.guidance_groups > 1 else []:
            _check_rows(self._weights(state, layer), layer.name)

    def gram(self, group: int = 0) -> Gram:
        """The statistic that the solver minimizes the errors of a group of rows under."""
        return guided(Gram(), self.guidance, group=group, groups=self.guidance_groups)

    def cost(self, layers: Sequence[Layer], tokens: int) -> Cost:
        """A factorization of the Gram matrix and its inverse, a pass of errors over columns, a search for scales."""
        width = layers[0].weight.shape[1]
        rows = sum(layer.weight.shape[0] for layer in layers)
        matrices = 3 * width**2 + 8 * rows * width  # float32: matrix, factor, inverse; weights, errors, candidates
        return Cost(
            flops=self.guidance_groups * 4 / 3 * width**3 + rows * width**2,
            elements=60.0 * rows * width,
            nbytes=4 * matrices,
            divided=True,
        )

    def takes_whole_range(self, state: State, layer: Layer) -> bool:
        """Never: its columns make up for errors against the weights that it is shown."""
        return False

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Ask for the Gram matrices of inputs."""
        super().initialize(state, stage)
        for layer in self.planned(state, stage):
            if self._weights(state, layer) is not None and "Linear" in layer.classes:
                for group in range(self.guidance_groups):
                    state.request(layer, self.gram(group))
                if self.correction in TWO_STREAMS:
                    state.request(layer, Cross())

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Round the weights of the stage: layers that read the same input together, and several inputs at once."""
        solvable = list[Readers]()
        for layers in state.input_groups(list(self._linear(state, stage))):
            if state.statistic(layers[0], self.gram()) is None:
                with state.timed(*layers):
                    self._round(state, layers, reason="no token of the calibration data reached it")
            else:
                solvable += self._readers(state, layers)
        self._round_together(state, stage, solvable)

    def _linear(self, state: State, stage: Stage) -> Iterator[Layer]:
        """Layers that have a Gram matrix; what becomes of the others is settled."""
        for layer in self.planned(state, stage):
            if self._weights(state, layer) is None:
                state.set_quantized(layer, self.quantized(state, layer))
            elif "Linear" not in layer.classes:
                self._round(state, [layer], reason="an embedding is called with token ids")
            else:
                yield layer

    def _round_together(self, state: State, stage: Stage, inputs: Sequence[Readers]) -> None:
        """Solve several inputs at once, divided among ranks; layers are written when all of their rows are there."""
        parts = [part for readers in inputs for part in readers.in_groups(self.guidance_groups)]
        missing = Counter(part.names() for part in parts)
        found: dict[tuple[str, ...], dict[int, Outcome]] = {}
        batches, solve = batches_of(parts, self.batched_quantization), partial(self._solve, state)
        costs = [self._batch_cost(batch) for batch in batches]
        for batch, outcomes, seconds in state.share.divided(f"layers of {stage.name}", batches, solve, costs=costs):
            for part, outcome in zip(batch, outcomes, strict=True):
                own, missing[part.names()] = found.setdefault(part.names(), {}), missing[part.names()] - 1
                own[part.group] = outcome
                if not missing[part.names()]:
                    with state.timed(*part.layers):
                        self._write(state, part, joined([own[group] for group in sorted(own)]))
                    del found[part.names()]
            layers = [layer for part in batch for layer in part.layers]
            for layer in layers:
                state.report[layer.name].seconds += seconds / len(layers)

    def _readers(self, state: State, layers: Sequence[Layer]) -> list[Readers]:
        """Layers that read the same input, those that are alike side by side."""
        alike: dict[tuple[QuantizationArgs, bool, torch.dtype, str], list[Layer]] = {}
        for layer in layers:
            args = self._weights(state, layer)
            assert args is not None
            self.global_scale(state, layer)  # by all ranks, before one of them solves
            alone = layer.name if layer.weight.shape[0] < self.guidance_groups else ""  # groups without a row of it
            alike.setdefault((args, self._keeps_zeros(layer), layer.weight.dtype, alone), []).append(layer)
        return [Readers(part, key[0], key[1]) for key, found in alike.items() for part in divided(found)]

    def _batch_cost(self, batch: Sequence[Readers]) -> float:
        """What solving takes, in operations."""
        found = [self.cost(readers.layers, 0) for readers in batch]
        return sum(cost.flops + 100 * cost.elements for cost in found)

    def _solve(self, state: State, batch: Sequence[Readers]) -> list[Outcome]:
        """GPTQ for the readers of some inputs, all of one kind."""
        fits = [self._fit(state, readers) for readers in batch]
        solvable = [fit for fit in fits if isinstance(fit, _Fit)]
        args, keep_zeros = batch[0].args, batch[0].keep_zeros
        problems = [fit.problem for fit in solvable]
        found = iter(gptq(problems, args, block_size=self.block_size, keep_zeros=keep_zeros) if problems else ())
        return [self._outcome(fit, next(found)) if isinstance(fit, _Fit) else fit for fit in fits]

    def _fit(self, state: State, readers: Readers) -> "_Fit | Outcome":
        """What is to be solved for the readers of an input; that they are rounded, where it cannot be."""
        layers, args = readers.layers, readers.args
        gram = state.take(layers, self.gram(readers.group))
        prepared = prepare(gram.total, dampening_frac=self.dampening_frac, by_activity=self.actorder is not None)
        tokens, total = gram.count, None if self.magr_alpha is None else gram.total
        del gram  # as large as its factor
        if prepared.factor is None:
            return Outcome(tokens=tokens, importance=prepared.importance)
        if self.correction == "foem":
            prepared = prepared._replace(steering=foem_feedback(prepared.factor.feedback, self.foem_beta))
        aims = self._aims(state, readers, prepared)
        weights = aims if total is None else self._shrunk(aims, total, readers)
        qparams, units = [], []
        for layer, weight in zip(layers, weights, strict=True):
            factor = self.global_scale(state, layer)
            scale, point = self._qparams(weight, args, prepared.importance, factor)
            qparams.append((scale, point))
            units.append((scale if factor is None else scale / factor, point))
        problem = Problem(weights, units, prepared)
        return _Fit(readers=readers, tokens=tokens, aims=aims, qparams=qparams, problem=problem)

    def _outcome(self, fit: "_Fit", solutions: Sequence[Solution]) -> Outcome:
        """What becomes of layers, and how well it fits."""
        args, prepared = fit.readers.args, fit.problem.prepared
        assert prepared.factor is not None
        found = []
        for aim, params, units, solution in zip(fit.aims, fit.qparams, fit.problem.qparams, solutions, strict=True):
            one, (scale, point) = solution, params
            if self.magr_alpha is not None:
                one = measured(one.codes, aim, units, prepared, args)
            if self.refit_scales:
                scale, one = refitted(aim, one, params, prepared, args)
            found.append(Rounded(codes=one.codes, scale=scale, zero_point=point, loss=float(one.loss.sum())))
        known = self.magr_alpha is None and not self.refit_scales  # else it is that of other weights, or other scales
        rounding = [float(one.rounding_loss.sum()) for one in solutions if known and one.rounding_loss is not None]
        return Outcome(
            tokens=fit.tokens, layers=tuple(found), rounding=tuple(rounding), dampening=prepared.factor.dampening
        )

    def _write(self, state: State, readers: Readers, outcome: Outcome) -> None:
        """Make an outcome what the layers are, and report how well they fit."""
        if outcome.importance is not None:
            reason = "the Gram matrix of its inputs is not positive definite"
            self._round(state, readers.layers, reason=reason, importance=outcome.importance)
            return
        for layer, one in zip(readers.layers, outcome.layers, strict=True):
            whole = self.quantized(state, layer)
            state.set_quantized(layer, evolve(whole, codes=one.codes, scale=one.scale, zero_point=one.zero_point))
        note_fit(
            state,
            readers.layers,
            tokens=outcome.tokens,
            dampening=outcome.dampening,
            losses=[one.loss for one in outcome.layers],
            rounding_losses=outcome.rounding,
        )

    def _aims(self, state: State, readers: Readers, prepared: Prepared) -> list[Tensor]:
        """Weights whose outputs are wanted, in their dtype: those of the layers, corrected where that is asked for."""
        weights = readers.weights()
        if self.correction not in TWO_STREAMS:
            return weights
        cross = state.take(readers.layers, Cross())
        correct = gptaq_weights if self.correction == "gptaq" else qronos_weights
        found = [correct(weight, cross, prepared).to(weight.dtype) for weight in weights]
        if readers.keep_zeros:
            return [new * (old != 0) for new, old in zip(found, weights, strict=True)]
        return found

    def _shrunk(self, weights: Sequence[Tensor], gram: Tensor, readers: Readers) -> list[Tensor]:
        """What MagR makes of weights that read the same input, in their dtype."""
        assert self.magr_alpha is not None
        stacked = torch.cat(list(weights))
        shrunk = shrink_ranges(stacked, gram, readers.args, alpha=self.magr_alpha, keep_zeros=readers.keep_zeros)
        return list(torch.split(shrunk.to(weights[0].dtype), [len(weight) for weight in weights]))

    def _round(self, state: State, layers: Sequence[Layer], *, reason: str, importance: Tensor | None = None) -> None:
        """Round to nearest, where GPTQ cannot."""
        for layer in layers:
            args = self._weights(state, layer)
            assert args is not None
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

    def _keeps_zeros(self, layer: Layer) -> bool:
        if self.preserve_sparsity_mask is not None:
            return self.preserve_sparsity_mask
        return bool(layer.weight.count_nonzero() < (1 - PRUNED) * layer.weight.numel())

    def _weights(self, state: State, layer: Layer) -> QuantizationArgs | None:
        scheme = state.scheme_of(layer)
        return None if scheme is None else scheme.weights


def _check_rows(args: QuantizationArgs | None, where: str) -> None:
    """Refuse scales that rows share, where rows are rounded in groups."""
    if args is not None and args.strategy in ("tensor", "block"):
        raise SchemeError(
            "guidance_groups rounds some rows without the others, so each must have scales of its own; "
            f"{where} has strategy {args.strategy!r}"
        )


@frozen(kw_only=True, eq=False)
class _Fit:
    """The readers of an input before they are rounded.

    Attributes:
        readers: which.
        tokens: of the calibration data that reached them.
        aims: weights whose outputs are wanted, [O, I] each.
        qparams: scale and zero point of each, as they are written.
        problem: what is solved; its scales are divided by a global one.
    """

    readers: Readers
    tokens: int
    aims: Sequence[Tensor]
    qparams: Sequence[tuple[Tensor, Tensor]]
    problem: Problem
