"""AWQModifier: settings and wiring of AWQ."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from attrs import evolve, field, frozen
from attrs.validators import and_, ge, in_, le
from torch import Tensor

from coldpress.plugin import (
    GUIDANCE,
    Call,
    Labels,
    Layer,
    Modifier,
    Needs,
    Note,
    QuantizationArgs,
    Quantizer,
    Scheme,
    SchemeError,
    Smoother,
    Smoothing,
    Stage,
    State,
    Statistic,
    guided,
    guiding,
    hookimpl,
)
from coldpress_awq.algorithm import Reader, best, candidate_scales, clip_range, relative_size, rounded, share_of_range
from coldpress_awq.block_objective import common_parent, distance, first_calls, replaced
from coldpress_awq.sample import SampledGram

NO_TOKEN = "no token of the calibration data reached its readers"
ROUNDING = (
    "scheme",
    "config_groups",
    "group_size",
    "weight_observer",
    "input_observer",
    "signed_scales",
    "output_observer",
    "observer",
    "kv_cache_scheme",
)
"""Settings of rounding to nearest, which a recipe may put here instead of into a step of its own."""


def _as_groups(value: Mapping[str, Scheme | Mapping[str, Any]] | None) -> dict[str, Scheme] | None:
    if value is None:
        return None
    return {name: one if isinstance(one, Scheme) else Scheme.from_dict(one) for name, one in value.items()}


def _as_args(value: QuantizationArgs | Mapping[str, Any] | None) -> QuantizationArgs | None:
    return value if value is None or isinstance(value, QuantizationArgs) else QuantizationArgs.from_dict(value)


@frozen(kw_only=True, eq=False)
class AWQModifier(Smoother):
    """Scale channels so that rounding weights changes the outputs of their layers least.

    A later modifier rounds, by its own scheme, which is the one that is searched for.  With a scheme of its own, as in
    older recipes, it stands for itself and a modifier after it that rounds to nearest.
    Further settings are those of `Smoother`: `mappings`, `targets`, `ignore`.

    Attributes:
        duo_scaling: scales follow activations and weights; False follows activations only, "both" tries both.
        n_grid: how many ratios are tried for each pair, at most 10,000.
        objective: `gram` compares the outputs of the readers, on their Gram matrices; `block` runs the attention or MLP
            that holds them again, for each ratio, on the first batches, as the original does: many times slower.
        guidance: tokens count by what an error in their outputs costs the model's loss, by labels "sampled" from the
            model or of the "data"; it takes a pass forwards and backwards through the model first.
        clip: weights are rounded on the grid of a smaller range, for each group the one that loses least, where who
            rounds them would take the whole range.
        scheme: of its own rounding, as in `QuantizationModifier`.
        config_groups: schemes in full, instead of `scheme`.
        group_size: columns that share a scale, in place of the preset's.
        weight_observer: of its own rounding.
        input_observer: of its own rounding.
        signed_scales: of its own rounding.
        output_observer: understood and without effect.
        observer: all of them at once.
        kv_cache_scheme: of its own rounding: how keys and values are quantized.
        bypass_divisibility_checks: understood and without effect.
        offload_device: understood and without effect: no activations are kept.
    """

    notes: ClassVar[tuple[Note, ...]] = (
        Note("ratio", "", "exponent of the activity of inputs in the scales that were chosen; 0 is no scaling"),
        Note("duo_scaling", "", "whether these scales are divided by the size of the weights too"),
        Note(
            "predicted_gain",
            "of the error",
            "share of what rounding costs that the scales save, by the search",
        ),
        Note("clipped_to", "of the range", "share of the range of its weights that the scales cover, on average"),
    )

    duo_scaling: bool | Literal["both"] = field(default=True, validator=in_((True, False, "both")))
    n_grid: int = field(default=20, validator=and_(ge(1), le(10_000)))
    objective: Literal["gram", "block"] = field(default="gram", validator=in_(("gram", "block")))
    guidance: Labels | None = field(default=None, validator=in_(GUIDANCE))
    clip: bool = True
    scheme: str | dict[str, str | list[str]] | None = None
    config_groups: dict[str, Scheme] | None = field(default=None, converter=_as_groups)
    group_size: int | None = None
    weight_observer: str | None = None
    input_observer: str | None = None
    signed_scales: bool = False
    output_observer: str | None = None
    observer: dict[str, str] | None = None
    kv_cache_scheme: QuantizationArgs | None = field(default=None, converter=_as_args)
    bypass_divisibility_checks: bool = False
    offload_device: str | None = None

    @guidance.validator
    def _check_guidance(self, attribute: object, value: object) -> None:
        if value is not None and self.objective == "block":
            raise ValueError("guidance weights the tokens of a Gram matrix, which objective: block does not use")

    @kv_cache_scheme.validator
    def _check_rounding(self, attribute: object, value: object) -> None:
        if given := self._rounding():
            if not given.keys() & {"scheme", "config_groups", "kv_cache_scheme"}:
                raise SchemeError(f"{', '.join(given)} is for rounding, which needs a scheme")
            Quantizer(**given)

    def expand(self) -> Sequence[Modifier]:
        """AWQ, and rounding to nearest where it has a scheme of its own."""
        given = self._rounding()
        if not given:
            return (self,)
        none: dict[str, Any] = dict.fromkeys(given)
        return evolve(self, **none), *Quantizer(**given, targets=self.targets, ignore=self.ignore).expand()

    def _rounding(self) -> dict[str, Any]:
        """Its settings of rounding, those that are given."""
        return {name: getattr(self, name) for name in ROUNDING if getattr(self, name) not in (None, False)}

    def needs(self) -> Needs:
        """Data, for the block objective the calls of modules, and what guides."""
        return evolve(super().needs(), calls=self.objective == "block", loss_gradients=guiding(self.guidance))

    def sampled(self) -> SampledGram:
        """The statistic that candidates are compared on."""
        return guided(SampledGram(), self.guidance)

    def statistics(self, smoothing: Smoothing) -> Iterable[str | Statistic]:
        """The Gram matrix of some tokens: candidates are compared on it, and nothing else."""
        return (self.sampled(),)

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Look for pairs, and ask for Gram matrices.

        Raises:
            SchemeError: nothing in the recipe quantizes weights.
            TargetError: a mapping matches nothing, or is not true.
        """
        if not any(planned.scheme.weights for planned in state.plan.values()):
            raise SchemeError(
                "AWQModifier prepares weights for rounding, and nothing in the recipe rounds them: put a "
                "QuantizationModifier or a GPTQModifier after it, or give it a scheme that has weights"
            )
        super().initialize(state, stage)
        for layer in self.layers(stage):
            if self._clips(state, layer) is not None:
                state.request(layer, self.sampled())

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Scale, and choose ranges."""
        super().finalize(state, stage)
        for layer in self.layers(stage):
            if layer.name not in state.quantized and (quantizer := self._clips(state, layer)) is not None:
                with state.timed(layer):
                    self._clip(state, layer, quantizer)

    def scale(self, state: State, smoothing: Smoothing) -> Tensor | str:
        """The scale of a pair, [C]."""
        how = {layer.name: self._weights(state, layer) for layer in smoothing.layers}
        if not any(how.values()):
            return "no later modifier quantizes the weights of its readers"
        seen = [
            layer
            for layer in smoothing.layers
            if how[layer.name] and state.statistic(layer, self.sampled()) is not None
        ]
        if not seen:
            return NO_TOKEN
        readers = [
            Reader(
                weight=torch.cat([layer.weight for layer in layers]) if len(layers) > 1 else layers[0].weight,
                gram=state.require(layers[0], self.sampled()).total,
                channels=smoothing.pair.channels(layers[0].name),
                args=args,
                clipped=self._clips(state, layers[0]) is not None,
            )
            for layers, args in _alike(state, seen, how)
        ]
        tokens = {id(gram): gram.count for layer in seen for gram in [state.require(layer, self.sampled())]}
        activity = _activity(readers, len(smoothing.pair.rows), sum(tokens.values()))
        if not bool(activity.any()):
            return "its channels are zero for all of the calibration data"
        scales, names = candidate_scales(
            activity, _weight_size(readers, len(activity)), n_grid=self.n_grid, duo_scaling=self.duo_scaling
        )
        calls = self._calls(state, smoothing)
        if calls:
            chosen, errors = self._best_for_outputs(state, smoothing, scales, calls)
        else:
            chosen, errors = best(readers, scales)
        for layer in seen:
            gain = float(1 - errors[chosen] / errors[0].clamp(min=1e-30))
            state.report[layer.name].notes |= {**names[chosen], "predicted_gain": round(gain, 4)}
        return scales[chosen]

    def _calls(self, state: State, smoothing: Smoothing) -> list[Call]:
        """The first calls of the module that holds the readers; none where the Gram matrix tells all, of one reader."""
        assert state.running is not None
        stage, parent = state.running.stage, common_parent([layer.name for layer in smoothing.layers])
        if self.objective != "block" or len(smoothing.layers) < 2 or parent not in stage.modules:
            return []
        return first_calls(state.calls(stage, parent))

    def _best_for_outputs(
        self, state: State, smoothing: Smoothing, scales: Tensor, calls: Sequence[Call]
    ) -> tuple[int, Tensor]:
        """The candidate that changes the outputs of the calls least, and what each of them changes, [P]."""
        layers = {layer.name: layer for layer in smoothing.layers if self._weights(state, layer) is not None}
        before, errors = [call.output().float() for call in calls], []
        for scale in scales:
            new = {}
            for name, layer in layers.items():
                args, spread = self._weights(state, layer), smoothing.pair.spread(scale, name)  # [I]
                assert args is not None
                costs = state.require(layer, self.sampled()).total.diagonal() / spread.square()  # [I]
                importance = costs if self._clips(state, layer) is not None else None
                new[name] = rounded(layer.weight.float() * spread, args, importance=importance) / spread
            with replaced({name: layer.weight for name, layer in layers.items()}, new):
                errors.append(distance(before, (call.output().float() for call in calls)))
        found = torch.stack(errors).nan_to_num(torch.inf)
        return int(found.argmin()), found

    def _clips(self, state: State, layer: Layer) -> Quantizer | None:
        """Who quantizes a layer, if its weight is clipped: where that one would take the whole range."""
        quantizer = state.quantizer_of(layer)
        if self.clip and isinstance(quantizer, Quantizer) and quantizer.takes_whole_range(state, layer):
            return quantizer
        return None

    def _clip(self, state: State, layer: Layer, quantizer: Quantizer) -> None:
        """Find the range of a layer's weight; one whose inputs no token reached keeps the whole."""
        seen, args = state.statistic(layer, self.sampled()), self._weights(state, layer)
        if seen is None or args is None:
            return
        factor = quantizer.global_scale(state, layer)
        low, high = clip_range(layer.weight, args, seen.total.diagonal(), global_scale=factor)
        state.clip_ranges[layer.name] = low, high
        state.report[layer.name].notes["clipped_to"] = round(share_of_range(layer.weight, args, low, high), 4)

    def _weights(self, state: State, layer: Layer) -> QuantizationArgs | None:
        """How the weights of a layer will be quantized."""
        scheme = state.scheme_of(layer)
        return None if scheme is None else scheme.weights


def _alike(
    state: State, layers: Sequence[Layer], how: Mapping[str, QuantizationArgs | None]
) -> list[tuple[list[Layer], QuantizationArgs]]:
    """Layers that read the same input and are quantized alike, together."""
    found: list[tuple[list[Layer], QuantizationArgs]] = []
    for group in state.input_groups(layers):
        for layer in group:
            args = how[layer.name]
            assert args is not None
            home = next((names for names, known in found if known == args and names[0] in group), None)
            if home is None or args.strategy in ("tensor", "block"):
                found.append(([layer], args))
            else:
                home.append(layer)
    return found


def _activity(readers: Sequence[Reader], count: int, tokens: int) -> Tensor:
    """The root mean square of each channel over all readers, [C]."""
    squares = readers[0].gram.new_zeros(count)
    seen: dict[int, Reader] = {id(reader.gram): reader for reader in readers}
    for reader in seen.values():
        squares += _gathered(reader.gram.diagonal().clamp(min=0), reader.channels, count)
    return (squares / tokens).sqrt()


def _weight_size(readers: Sequence[Reader], count: int) -> Tensor:
    """How large the weights of each channel are in their groups, over all readers, [C]."""
    sizes = readers[0].gram.new_zeros(count)
    for reader in readers:
        sizes += _gathered(relative_size(reader.weight, reader.args), reader.channels, count) * len(reader.weight)
    return sizes / sum(len(reader.weight) for reader in readers)


def _gathered(values: Tensor, channels: Tensor, count: int) -> Tensor:
    """The mean over the inputs that see each element of the scale, [I] -> [C]."""
    channels = channels.to(values.device)
    seen = channels >= 0
    out = values.new_zeros(count)
    return out.scatter_reduce(0, channels[seen], values[seen], "mean", include_self=False)
