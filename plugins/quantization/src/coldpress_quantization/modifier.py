"""QuantizationModifier: round to nearest, which is what `Quantizer` does."""

from attrs import frozen

from coldpress.plugin import Quantizer


@frozen(kw_only=True, eq=False)
class QuantizationModifier(Quantizer):
    """Quantize weights by rounding to nearest, and inputs, keys and values as the scheme says.

    All settings are those of `Quantizer`: `scheme` or `config_groups`, `targets`, `ignore`, observers,
    `kv_cache_scheme`.
    """
