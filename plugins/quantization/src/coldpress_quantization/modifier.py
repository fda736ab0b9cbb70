"""QuantizationModifier: settings and wiring of round to nearest."""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from coldpress.plugin import (
    KVCache,
    Needs,
    QuantizationArgs,
    Quantizer,
    Scheme,
    SchemeError,
    Stage,
    State,
    attach_caches,
    cache_args,
    check_queries,
    hookimpl,
    kv_caches,
    request_ranges,
)


def _to_cache(value: Mapping[str, Any] | QuantizationArgs | None) -> QuantizationArgs | None:
    return None if value is None else cache_args(value)


@frozen(kw_only=True, eq=False)
class QuantizationModifier(Quantizer):
    """Quantize weights by rounding to nearest, and inputs as the scheme says.

    Further settings are those of `Quantizer`: `scheme` or `config_groups`, `targets`, `ignore`, observers.

    One of `config_groups` without weights, whose targets are classes of attention such as `LlamaAttention`, quantizes
    queries, keys and values where attention runs.

    Attributes:
        kv_cache_scheme: how keys and values are quantized where attention runs: static and symmetric, one scale for
            the tensor or, with strategy `attn_head`, for each head; alone, or beside a scheme of layers.
    """

    kv_cache_scheme: QuantizationArgs | None = field(default=None, converter=_to_cache)

    @kv_cache_scheme.validator
    def _check_cache(self, attribute: object, value: QuantizationArgs | None) -> None:
        groups = self._attention()
        if any(group.input_activations is None or group.output_activations for group in groups):
            raise SchemeError(
                "a group of attention needs input_activations, how queries, keys and values are quantized"
            )
        found = {cache_args(group.input_activations) for group in groups if group.input_activations is not None}
        found |= {value} if value else set()
        if len(found) > 1:
            raise SchemeError(
                "kv_cache_scheme and the groups of attention differ: keys and values are quantized in one way; "
                "drop kv_cache_scheme, which attention implies"
            )

    def schemes(self) -> list[Scheme]:
        """Every scheme of layers, with its targets and observers."""
        attention = self._attention()
        return [scheme for scheme in super().schemes() if scheme not in attention]

    def needs_no_scheme(self) -> bool:
        """Keys and values alone may be quantized."""
        return self.kv_cache_scheme is not None

    def needs(self) -> Needs:
        """Scales of inputs that are static, and those of keys, values and queries, are made of what is seen."""
        base, cache = super().needs(), self._cache() is not None
        return evolve(base, data=base.data or cache, batch_boundaries=base.batch_boundaries or cache)

    def _attention(self) -> list[Scheme]:
        """The groups that mean attention itself and not its layers."""
        groups = (self.config_groups or {}).values()
        return [
            group
            for group in groups
            if group.weights is None and group.targets and all(name.endswith("Attention") for name in group.targets)
        ]

    def _queries(self) -> list[str]:
        """Classes of the attention whose queries are quantized."""
        return [name for group in self._attention() for name in group.targets]

    def _cache(self) -> QuantizationArgs | None:
        """How keys and values are quantized, and queries if they are."""
        inputs = [group.input_activations for group in self._attention()]
        return self.kv_cache_scheme or (_to_cache(inputs[0]) if inputs else None)

    def observes(self, stage: Stage) -> list[str]:
        """Its layers, and attention where keys and values are quantized."""
        return [*super().observes(stage), *(name for name, _ in self.attachments(stage))]

    def attachments(self, stage: Stage) -> Sequence[tuple[str, KVCache]]:
        """The rounding of keys and values, and of queries if they are quantized."""
        args = self._cache()
        return () if args is None else kv_caches(stage, args, queries=self._queries())

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Request what scales are made of."""
        super().initialize(state, stage)
        if self._cache() is not None:
            check_queries(state.model, self._queries())
            request_ranges(state, stage, self.attachments(stage))

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Round the weights of the stage, and keys, values and queries from now on."""
        if self._cache() is not None:
            attach_caches(state, stage, self.attachments(stage))
        super().finalize(state, stage)
        for layer in self.layers(stage):
            if state.quantizer_of(layer) is None and state.report[layer.name].status == "untouched":
                state.skip(layer, "only keys and values are quantized")
