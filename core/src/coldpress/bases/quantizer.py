"""Quantizer: the settings and the input observers that every modifier shares that ends in a scheme."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from coldpress.arguments import DEFAULT_ACTIVATION_OBSERVER, DEFAULT_WEIGHT_OBSERVER
from coldpress.bases.kv_cache import CacheQuantizer, cache_args
from coldpress.bases.weight_range import weight_qparams
from coldpress.calibration.observer import check_observer, checked_range, observer_for
from coldpress.calibration.statistics import Observed
from coldpress.dataflow.fused import FusedLayers
from coldpress.errors import CalibrationError, SchemeError
from coldpress.experts.tokens import siblings
from coldpress.hookspecs import hookimpl
from coldpress.modifier import QUANTIZES, Modifier, Needs
from coldpress.numerics import calculate_global_scale, calculate_qparams, in_weight_dtype, quantize, version
from coldpress.quantized import Quantized
from coldpress.schemes import QuantizationArgs, Scheme, may_be_signed, preset
from coldpress.spelling import suggest
from coldpress.stage import Layer, Stage
from coldpress.state import State

_PARTS = ("weights", "input", "output")
_OBSERVED = (("weights", DEFAULT_WEIGHT_OBSERVER), ("input_activations", DEFAULT_ACTIVATION_OBSERVER))


def _as_groups(value: Mapping[str, Scheme] | None) -> dict[str, Scheme] | None:
    if value is None:
        return None
    return {k: v if isinstance(v, Scheme) else Scheme.from_dict(v) for k, v in value.items()}


def _to_cache(value: Mapping[str, Any] | QuantizationArgs | None) -> QuantizationArgs | None:
    return None if value is None else cache_args(value)


@frozen(kw_only=True, eq=False)
class Quantizer(Modifier):
    """Base of modifiers that quantize weights and, by scheme, inputs; by itself it rounds to nearest.

    A subclass implements `finalize`, where it turns each weight into codes; the observers of static inputs are
    requested and read here, and keys and values are the business of a `CacheQuantizer` that it also stands for.

    One of `config_groups` without weights, whose targets are classes of attention such as `LlamaAttention`, quantizes
    queries, keys and values where attention runs.

    Attributes:
        scheme: a preset by name (`W4A16`), or preset to targets, `{W4A16: [...], W8A8: [...]}`.
        config_groups: schemes in full, by a name of your choice; instead of `scheme`.
        group_size: in place of the preset's; -1 for per-channel scales.
        weight_observer: observer of weights, in place of the scheme's.
        input_observer: observer of static inputs, in place of the scheme's.
        signed_scales: scales of weights that are symmetric integers are negative where the largest weight of a group is
            above zero, which the grid reaches less far than below; other formats have one sign.
        output_observer: understood and without effect: outputs of layers are not quantized.
        observer: all of them at once, `{weights: ..., input: ...}`; instead of the three above.
        kv_cache_scheme: how keys and values are quantized where attention runs: static and symmetric, one scale for
            the tensor or, with strategy `attn_head`, for each head; alone, or beside a scheme of layers.
        bypass_divisibility_checks: understood and without effect: no reader decodes a weight whose columns do not
            divide into groups, so it is refused.
    """

    traits: ClassVar[frozenset[str]] = frozenset({QUANTIZES})

    scheme: str | dict[str, str | list[str]] | None = None
    config_groups: dict[str, Scheme] | None = field(default=None, converter=_as_groups)
    group_size: int | None = None
    weight_observer: str | None = None
    input_observer: str | None = None
    signed_scales: bool = False
    output_observer: str | None = None
    observer: dict[str, str] | None = None
    kv_cache_scheme: QuantizationArgs | None = field(default=None, converter=_to_cache)
    bypass_divisibility_checks: bool = False

    @config_groups.validator
    def _check_relations(self, attribute: object, value: object) -> None:
        none_needed = self.needs_no_scheme() or self.kv_cache_scheme is not None
        if (self.scheme is None) == (self.config_groups is None) and not (self.scheme is None and none_needed):
            raise SchemeError("give either scheme (a preset such as 'W4A16') or config_groups, one of the two")
        if self.observer is not None:
            if self.weight_observer or self.input_observer or self.output_observer:
                raise SchemeError("give either observer or weight_observer, input_observer and output_observer")
            for part in self.observer:
                if part not in _PARTS:
                    near = suggest(part, _PARTS)
                    raise SchemeError(f"observer has no part {part!r}{near}; it has {', '.join(_PARTS)}")
        if self.config_groups is not None and self.group_size is not None:
            raise SchemeError("group_size changes a preset; in config_groups write it into the weights")
        self.schemes()
        for name, scheme in (self.config_groups or {}).items():
            for part, default in _OBSERVED:
                check_observer(getattr(scheme, part), default, place=(name, part))

    @kv_cache_scheme.validator
    def _check_cache(self, attribute: object, value: QuantizationArgs | None) -> None:
        groups = self._attention()
        if any(group.input_activations is None or group.output_activations for group in groups.values()):
            raise SchemeError(
                "a group of attention needs input_activations, how queries, keys and values are quantized"
            )
        inputs = [group.input_activations for group in groups.values()]
        if len({cache_args(args) for args in (*inputs, value) if args is not None}) > 1:
            raise SchemeError(
                "kv_cache_scheme and the groups of attention differ: keys and values are quantized in one way; "
                "drop kv_cache_scheme, which attention implies"
            )

    def needs_no_scheme(self) -> bool:
        """Whether there are layers to quantize without a scheme of its own."""
        return False

    def expand(self) -> Sequence[Modifier]:
        """Itself, and where keys and values are quantized, a modifier that does so; each where it has work."""
        attention = self._attention()
        inputs = [group.input_activations for group in attention.values()]
        args = self.kv_cache_scheme or next(iter(inputs), None)
        if args is None:
            return (self,)
        queries = [name for group in attention.values() for name in group.targets]
        cache = CacheQuantizer(args=args, queries=queries, propagated_error=self.needs().propagated_error)
        if not self.schemes() and not self.needs_no_scheme():
            return (cache,)
        layers = {name: one for name, one in (self.config_groups or {}).items() if name not in attention}
        return evolve(self, config_groups=layers or None, kv_cache_scheme=None), cache

    def schemes(self) -> list[Scheme]:
        """Every scheme of layers, with its targets and observers.

        Raises:
            SchemeError: a preset that does not exist; near names are suggested.
        """
        return list(self._schemes)

    @cached_property
    def _schemes(self) -> tuple[Scheme, ...]:
        if self.config_groups is not None:
            attention = self._attention()
            schemes = [scheme for name, scheme in self.config_groups.items() if name not in attention]
        elif self.scheme is None:
            return ()
        elif isinstance(self.scheme, str):
            schemes = [evolve(self._preset(self.scheme), targets=tuple(self.targets))]
        else:
            pairs = [(name, [t] if isinstance(t, str) else t) for name, t in self.scheme.items()]
            schemes = [evolve(self._preset(name), targets=tuple(targets)) for name, targets in pairs]
        return tuple(self.observed(scheme) for scheme in schemes)

    def observed(self, scheme: Scheme) -> Scheme:
        """A scheme with the observers that its settings name in place of the scheme's."""
        named = self.observer or {}
        return evolve(
            scheme,
            weights=self._signed(_with_observer(scheme.weights, named.get("weights", self.weight_observer))),
            input_activations=_with_observer(scheme.input_activations, named.get("input", self.input_observer)),
        )

    def scheme_for(self, layer: Layer) -> Scheme | None:
        """The scheme whose target means this layer most exactly: a name before a pattern, a pattern before a class.

        None where that quantizes nothing (`UNQUANTIZED`).
        """
        if layer.matches(self.ignore):
            return None
        schemes = self.schemes()
        ranked = [(_rank(t, layer), i) for i, s in enumerate(schemes) for t in s.targets if layer.matches([t])]
        return schemes[min(ranked)[1]] if ranked and not _is_empty(schemes[min(ranked)[1]]) else None

    def patterns(self) -> list[str]:
        """The targets of every scheme; its own where there is none."""
        return [target for scheme in self.schemes() for target in scheme.targets] or list(self.targets)

    def layers(self, stage: Stage) -> list[Layer]:
        """The layers of a stage that some scheme of this modifier means, and does not leave as they are."""
        found = stage.layers(self.patterns(), self.ignore)
        if any(_is_empty(scheme) for scheme in self.schemes()):
            return [layer for layer in found if self.scheme_for(layer) is not None]
        return found

    def needs(self) -> Needs:
        """Data for scales of static inputs, and for an observer of weights that weighs columns.

        Propagated error where anything is rounded to fewer than 8 bits: what 8 bits do to later inputs is too little
        to matter.  Batch boundaries where the observer of static inputs averages over batches.
        """
        schemes = self.schemes()
        static = [args for one in schemes if (args := one.input_activations) is not None and _is_static(args)]
        parts = [part for scheme in schemes for part in (scheme.weights, scheme.input_activations)]
        return Needs(
            data=bool(static) or any(_weighs(scheme.weights) for scheme in schemes),
            propagated_error=any(part is not None and part.num_bits < 8 for part in parts),
            batch_boundaries=any(observer_for(args, DEFAULT_ACTIVATION_OBSERVER).order_matters for args in static),
        )

    def takes_whole_range(self, state: State, layer: Layer) -> bool:
        """Whether scales of a layer's weight will span it from its smallest to its largest element.

        Then a modifier that comes before may choose another range, in `state.clip_ranges`, which
        `rounded` takes instead.
        A modifier that searches for scales says no.
        """
        scheme = state.scheme_of(layer)
        args = None if scheme is None else scheme.weights
        return args is not None and observer_for(args, DEFAULT_WEIGHT_OBSERVER).whole_range

    def planned(self, state: State, stage: Stage) -> list[Layer]:
        """The layers of a stage that this modifier, and no other of the recipe, quantizes."""
        return [layer for layer in self.layers(stage) if state.quantizer_of(layer) is self]

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Ask for what the scales of static inputs are made of, and for what observers of weights look at."""
        for layer in self.planned(state, stage):
            scheme = scheme_of(state, layer)
            if _weighs(scheme.weights) and "Linear" in layer.classes:
                state.request(layer, "second_moment")
            observed = observed_input(scheme)
            if observed is not None:
                state.request(layer, observed)

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Round the weights of the stage to nearest."""
        for layer in self.planned(state, stage):
            with state.timed(layer):
                state.set_quantized(layer, self.rounded(state, layer))

    def quantized(self, state: State, layer: Layer) -> Quantized:
        """The layer with its scheme and the scales of its inputs; `finalize` adds codes and scales of the weights.

        Raises:
            CalibrationError: inputs are static and no token ever reached the layer.
        """
        scheme, global_scale = scheme_of(state, layer), self.global_scale(state, layer)
        observed = observed_input(scheme)
        if observed is None:
            return Quantized(scheme, global_scale=global_scale)
        ranges = self._input_ranges(state, layer, observed)
        if not ranges:
            raise CalibrationError(
                f"{layer.name} saw no token of the calibration data, so its static inputs have no scale; "
                "calibrate with more data, ignore the layer, or choose a scheme with dynamic inputs"
            )
        low, high = torch.stack([low for low, _ in ranges]), torch.stack([high for _, high in ranges])
        low, high = low.amin(dim=0), high.amax(dim=0)
        assert scheme.input_activations is not None
        if scheme.input_activations.dynamic == "local":
            inputs = calculate_global_scale(torch.maximum(-low, high), scheme.input_activations)
            return Quantized(scheme, global_scale=global_scale, input_global_scale=inputs)
        scale, zero_point = calculate_qparams(low, high, observed.observer.args)
        return Quantized(scheme, global_scale=global_scale, input_scale=scale, input_zero_point=zero_point)

    def rounded(self, state: State, layer: Layer, qparams: tuple[Tensor, Tensor] | None = None) -> Quantized:
        """In `finalize`: `quantized`, with every weight at the nearest point of its grid; as it is without a grid.

        Args:
            state: of the run.
            layer: whose weight is read.
            qparams: scale and zero point of the weight; None for those of its range in `state.clip_ranges`, where the
                scheme's observer would take the whole range, or those that the observer finds.
        """
        found = self.quantized(state, layer)
        args, factor, chosen = found.scheme.weights, found.global_scale, state.clip_ranges.pop(layer.name, None)
        if args is None:
            return found
        if qparams is None and chosen is not None and self.takes_whole_range(state, layer):
            scale, point = calculate_qparams(*chosen, args, global_scale=factor)
            qparams = in_weight_dtype(scale, layer.weight, args), point
        scale, point = qparams or weight_qparams(
            layer.weight, args, global_scale=factor, importance=self.importance(state, layer)
        )
        if state.scale_dtype is not None:
            scale = scale.to(state.scale_dtype)  # before codes are chosen: they are decoded by what is stored
        codes = quantize(layer.weight, scale, point, args, global_scale=factor)
        return evolve(found, codes=codes, scale=scale, zero_point=point)

    def global_scale(self, state: State, layer: Layer) -> Tensor | None:
        """In `finalize`: what the weight's scales are multiplied by, [1]; None for most schemes.

        Layers that engines fuse have one in common.  It holds as long as none of their weights changes but by being
        quantized with it.
        """
        args = scheme_of(state, layer).weights
        if args is None or args.strategy != "tensor_group":
            return None
        beside = state.fact(FusedLayers).beside(layer)
        together = [one for one in beside if (found := state.scheme_of(one)) and found.weights == args]
        left = [layer, *(one for one in together if one.name not in state.quantized)]
        versions = {one.name: version(one.weight) for one in left}
        known = state.global_scales.get(layer.name)
        if known is None or any(known[1].get(name) != number for name, number in versions.items()):
            ends = [end for one in left for end in one.weight.aminmax()]
            largest = torch.stack(ends).abs().amax()
            scale = calculate_global_scale(largest, args)
            state.global_scales.update({one.name: (scale, versions) for one in left})
        return state.global_scales[layer.name][0]

    def importance(self, state: State, layer: Layer) -> Tensor | None:
        """In `finalize`: the mean squares of the layer's inputs, [I] float32, for an observer that weighs columns.

        None where the scheme names no such observer, where no token reached the layer, and for embeddings.
        """
        if not _weighs(scheme_of(state, layer).weights) or "Linear" not in layer.classes:
            return None
        seen = state.statistic(layer, "second_moment")
        return None if seen is None else seen.mean

    def _input_ranges(self, state: State, layer: Layer, observed: Observed) -> list[tuple[Tensor, Tensor]]:
        """Smallest and largest input, of the layer itself, or of the other experts when no token reached this one."""
        own = state.statistic(layer, observed)
        if own is not None:
            return [_range(observed, own)]
        others = [
            other
            for other in siblings(state.model, layer)
            if (scheme := state.scheme_of(other)) is not None and observed_input(scheme) == observed
        ]
        seen = [value for other in others if (value := state.statistic(other, observed)) is not None]
        return [_range(observed, value) for value in seen]

    def _attention(self) -> dict[str, Scheme]:
        """The groups that mean attention itself and not its layers."""
        return {
            name: group
            for name, group in (self.config_groups or {}).items()
            if group.weights is None and group.targets and all(target.endswith("Attention") for target in group.targets)
        }

    def _signed(self, args: QuantizationArgs | None) -> QuantizationArgs | None:
        """How weights are quantized, with `signed_scales` where these mean something."""
        if args is None or not (self.signed_scales and may_be_signed(args)):
            return args
        return evolve(args, signed_scales=True)

    def _preset(self, name: str) -> Scheme:
        return preset(name) if self.group_size is None else preset(name, group_size=self.group_size)


def scheme_of(state: State, layer: Layer) -> Scheme:
    """The scheme of a layer that is quantized."""
    scheme = state.scheme_of(layer)
    assert scheme is not None, layer.name
    return scheme


def observed_input(scheme: Scheme) -> Observed | None:
    """What is observed of inputs; None when their scales are found while serving, or they have none."""
    args = scheme.input_activations
    if args is None or not _is_static(args):
        return None
    if args.dynamic == "local":  # the global scale is that of the tensor; those of groups are found while serving
        args = evolve(args, strategy="tensor", group_size=None, dynamic=False, scale_dtype=None)
    return Observed(observer=observer_for(args, DEFAULT_ACTIVATION_OBSERVER))


def _range(observed: Observed, value: Any) -> tuple[Tensor, Tensor]:
    """The range of static inputs, which share one scale, [1] both."""
    observer = observed.observer
    return checked_range(observer, observer.range(value), (1,))


def _rank(pattern: str, layer: Layer) -> int:
    if pattern == layer.name:
        return 0
    return 1 if pattern.startswith("re:") else 2


def _is_empty(scheme: Scheme) -> bool:
    return scheme.weights is None and scheme.input_activations is None and scheme.output_activations is None


def _weighs(args: QuantizationArgs | None) -> bool:
    return args is not None and args.observer is not None and observer_for(args, args.observer).weighs_columns


def _is_static(args: QuantizationArgs | None) -> bool:
    return args is not None and args.dynamic is not True


def _with_observer(args: QuantizationArgs | None, observer: str | None) -> QuantizationArgs | None:
    return args if args is None or observer is None else evolve(args, observer=observer)
