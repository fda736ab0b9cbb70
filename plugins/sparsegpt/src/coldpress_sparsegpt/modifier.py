"""SparseGPTModifier: settings and wiring of SparseGPT."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import comb

from attrs import field, frozen
from attrs.validators import ge
from torch import Tensor

from coldpress.numerics.mask import prune_by_score, score_by_norm
from coldpress.plugin import Cost, Gram, Layer, Pruner, Stage, State, guided, hookimpl, note_fit
from coldpress_sparsegpt.algorithm import prepare, sparsegpt
from coldpress_sparsegpt.refine import loss_of, refined


@frozen(kw_only=True, eq=False)
class Outcome:
    """What becomes of layers that read the same input.

    Attributes:
        layers: the pruned weight of each, [O, I], and the squared error of its outputs.
        tokens: of the calibration data that reached them.
        dampening: share of the mean diagonal that was added to the Gram matrix.
        reason: why they are pruned by magnitude; None where they are not.
        norm: of their inputs, [I], by which magnitudes are weighed then; None where it is not known.
    """

    layers: tuple[tuple[Tensor, float], ...] = ()
    tokens: int = 0
    dampening: float = 0.0
    reason: str | None = None
    norm: Tensor | None = None


@frozen(kw_only=True, eq=False)
class SparseGPTModifier(Pruner):
    """Prune weights so that the outputs of each layer, for the calibration data, change least.

    Further settings are those of `Pruner`: `sparsity`, `mask_structure`, `sparsity_profile`, `guidance`, `targets`,
    `ignore`.

    Attributes:
        block_size: columns whose mask is chosen at once; with `n:m` it changes speed only.
        dampening_frac: share of the mean diagonal of the Gram matrix that is added to its diagonal.
        refine_passes: passes over all columns after the mask is chosen, in which groups of `n:m`, up to 4:8, are chosen
            anew and weights that stay are fitted anew, with all other columns as they are by then; 0 leaves
            SparseGPT's.
        preserve_sparsity_mask: weights that are zero stay zero, and count towards the sparsity.
        offload_hessians: understood and without effect: Gram matrices live no longer than their stage.
    """

    block_size: int = field(default=128, validator=ge(1))
    dampening_frac: float = field(default=0.01, validator=ge(0))
    refine_passes: int = field(default=2, validator=ge(0))
    preserve_sparsity_mask: bool = False
    offload_hessians: bool = False

    def cost(self, layers: Sequence[Layer], tokens: int) -> Cost:
        """A factorization of the Gram matrix, a pass of errors over columns, and the passes that choose anew."""
        width, rows = layers[0].weight.shape[1], sum(layer.weight.shape[0] for layer in layers)
        structure = self.structure()
        size = structure[1] if structure else 1
        subsets = comb(structure[1], structure[0]) if structure else 1
        matrices = 4 * width**2 + 6 * rows * width
        return Cost(
            flops=4 / 3 * width**3 + (5 + 2 * self.refine_passes) * rows * width**2,
            elements=(40.0 + self.refine_passes * 3 * subsets) * rows * width,
            steps=40.0 * width + self.refine_passes * 100.0 * width / size,
            nbytes=4 * matrices,
            divided=True,
        )

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Request the Gram matrices of inputs."""
        super().initialize(state, stage)
        for layer in self.layers(stage):
            state.request(layer, guided(Gram(), self.guidance))

    def input_norms(self, state: State, layer: Layer) -> Tensor | None:
        """The root of the sum of squares of each input, [I]; None when no token reached the layer."""
        gram = state.statistic(layer, guided(Gram(), self.guidance))
        return None if gram is None else gram.total.diagonal().clamp(min=0).sqrt()

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Prune the weights of the stage, layers that read the same input together."""
        sparsities = self.sparsities(state, stage)
        groups = state.input_groups(self.layers(stage))
        costs = [float(group[0].weight.shape[1]) ** 2 * sum(len(one.weight) for one in group) for group in groups]
        solve = partial(self._solve, state, sparsities)
        for layers, outcome, seconds in state.share.divided(f"layers of {stage.name}", groups, solve, costs=costs):
            with state.timed(*layers):
                self._write(state, layers, [sparsities[layer.name] for layer in layers], outcome)
            for layer in layers:
                state.report[layer.name].seconds += seconds / len(layers)

    def _solve(self, state: State, sparsities: Mapping[str, float], layers: Sequence[Layer]) -> "Outcome":
        """SparseGPT for layers that read the same input, or why it cannot be."""
        gram = state.statistic(layers[0], guided(Gram(), self.guidance))
        if gram is None:
            return Outcome(reason="no token of the calibration data reached it")
        norm = gram.total.diagonal().clamp(min=0).sqrt()
        factor = prepare(gram.total, dampening_frac=self.dampening_frac)
        if not bool(norm.any()):
            return Outcome(reason="its inputs are zero for all of the calibration data")
        if factor is None:
            return Outcome(reason="the Gram matrix of its inputs is not positive definite", norm=norm)
        solutions = sparsegpt(
            [layer.weight for layer in layers],
            factor,
            sparsities=[sparsities[layer.name] for layer in layers],
            structure=self.structure(),
            block_size=self.block_size,
            keep_zeros=self.preserve_sparsity_mask,
        )
        weights = [layer.weight for layer in layers]
        pruned = self._refined(weights, [one.weight for one in solutions], gram.total, factor.dampening)
        found = tuple(
            (new.to(old.dtype), loss_of(old, new, gram.total)) for old, new in zip(weights, pruned, strict=True)
        )
        return Outcome(layers=found, tokens=gram.count, dampening=factor.dampening)

    def _write(self, state: State, layers: Sequence[Layer], sparsities: Sequence[float], outcome: "Outcome") -> None:
        """Make an outcome what the layers are, or prune by magnitude where there is none."""
        if outcome.reason is not None:
            self._fall_back(state, layers, sparsities, reason=outcome.reason, norm=outcome.norm)
            return
        for layer, (pruned, _) in zip(layers, outcome.layers, strict=True):
            state.set_weight(layer, pruned)
        losses = [loss for _, loss in outcome.layers]
        note_fit(state, layers, tokens=outcome.tokens, dampening=outcome.dampening, losses=losses)

    def _refined(
        self, weights: Sequence[Tensor], sparse: Sequence[Tensor], gram: Tensor, dampening: float
    ) -> Sequence[Tensor]:
        """What SparseGPT made of weights, after the passes that are asked for."""
        if not self.refine_passes:
            return sparse
        structure = None if self.preserve_sparsity_mask else self.structure()  # zeros that must stay fix the mask
        return refined(weights, sparse, gram, dampening=dampening, structure=structure, passes=self.refine_passes)

    def _fall_back(
        self,
        state: State,
        layers: Sequence[Layer],
        sparsities: Sequence[float],
        *,
        reason: str,
        norm: Tensor | None = None,
    ) -> None:
        """Prune by magnitude, times the norm of the input where it is known."""
        how = "magnitude" if norm is None else "magnitude times input norm"
        for layer, sparsity in zip(layers, sparsities, strict=True):
            weight = layer.weight
            scores = weight.float().abs() if norm is None else score_by_norm(weight, norm)
            pruned = prune_by_score(weight, scores, sparsity=sparsity, structure=self.structure())
            state.set_weight(layer, pruned)
            state.fall_back(layer, f"pruned by {how}: {reason}")
