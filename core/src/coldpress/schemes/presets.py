"""The schemes that have names: every preset of the field (compressed-tensors 0.20), upper or lower case.

`from coldpress.schemes.presets import NVFP4` is what `Scheme(targets=..., **NVFP4)` takes.
"""

from typing import Any

import torch
from attrs import evolve, fields

from coldpress.errors import BrokenPluginError, SchemeError, UnknownPluginError
from coldpress.registry import available, find
from coldpress.schemes.quantization_args import QuantizationArgs
from coldpress.schemes.scheme import Scheme
from coldpress.spelling import suggest

_Tensors = tuple[QuantizationArgs | None, QuantizationArgs | None]  # weights, input_activations

_E8M0 = {"scale_dtype": torch.uint8}  # scales are powers of two
_E4M3 = {"scale_dtype": torch.float8_e4m3fn}


def _int(num_bits: int, **settings: Any) -> QuantizationArgs:
    return QuantizationArgs(num_bits=num_bits, type="int", **settings)


def _float(num_bits: int, **settings: Any) -> QuantizationArgs:
    return QuantizationArgs(num_bits=num_bits, type="float", **settings)


def _grouped(num_bits: int, symmetric: bool = True) -> QuantizationArgs:
    return _int(num_bits, strategy="group", group_size=128, symmetric=symmetric)


def _microscaled(num_bits: int, dynamic: bool = False) -> QuantizationArgs:
    return _float(num_bits, strategy="group", group_size=32, dynamic=dynamic, **_E8M0)


_INT8_TOKENS = _int(8, strategy="token", dynamic=True)
_FP8_TOKENS = _float(8, strategy="token", dynamic=True)
_FP8_TOKEN_GROUPS = _float(8, strategy="group", group_size=128, dynamic=True)
_NVFP4 = _float(4, strategy="tensor_group", group_size=16, **_E4M3)
_W8A8: _Tensors = (_int(8, strategy="channel"), _INT8_TOKENS)

_PRESETS: dict[str, _Tensors] = {
    "UNQUANTIZED": (None, None),
    "W8A8": _W8A8,
    "INT8": _W8A8,
    "W4A16_ASYM": (_grouped(4, symmetric=False), None),
    "W4AFP8": (_grouped(4), _FP8_TOKENS),
    "FP8": (_float(8, strategy="tensor"), _float(8, strategy="tensor", observer="static_minmax")),
    "FP8_DYNAMIC": (_float(8, strategy="channel"), _FP8_TOKENS),
    "FP8_BLOCK": (_float(8, strategy="block", block_structure=(128, 128)), _FP8_TOKEN_GROUPS),
    "NVFP4A16": (_NVFP4, None),
    "NVFP4": (_NVFP4, evolve(_NVFP4, dynamic="local", observer="static_minmax")),
    "MXFP4A16": (_microscaled(4), None),
    "MXFP4": (_microscaled(4), _microscaled(4, dynamic=True)),
    "MXFP4XFP8": (_microscaled(4), _FP8_TOKEN_GROUPS),
    "MXFP6A16": (_microscaled(6), None),
    "MXFP6A8": (_microscaled(6), _microscaled(8, dynamic=True)),
    "MXFP8A16": (_microscaled(8), None),
    "MXFP8": (_microscaled(8), _microscaled(8, dynamic=True)),
    # W<w>A<a>, 2 <= w <= a; W8A8 above is another thing: one scale a channel
    **{f"W{bits}A16": (_grouped(bits), None) for bits in range(2, 9)},
    **{f"W{bits}A8": (_grouped(bits), _INT8_TOKENS) for bits in range(2, 8)},
    **{f"W{bits}A4": (_grouped(bits), _int(4, strategy="token", dynamic=True)) for bits in range(2, 5)},
}


def __getattr__(name: str) -> dict[str, QuantizationArgs | None]:
    if name not in _PRESETS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{suggest(name, _PRESETS)}")
    weights, inputs = _PRESETS[name]
    return {"weights": weights, "input_activations": inputs}


def preset_names() -> tuple[str, ...]:
    """Every preset that is built in, in upper case; plugins offer more under `coldpress.presets`."""
    return tuple(_PRESETS)


def preset(name: str, **overrides: Any) -> Scheme:
    """The scheme of this name for the layers `Linear`.

    Args:
        name: one of `preset_names()`, or of an installed plugin, in upper or lower case.
        overrides: fields of the weights' `QuantizationArgs` to be other than the preset's, for example
            `group_size=64`; `group_size=-1` means one scale a channel.

    Raises:
        SchemeError: the name or a field is unknown, or the preset does not allow the change.
    """
    known = name.upper()
    known = known if known in _PRESETS else known.replace("-", "_")
    scheme = _built_in(known) if known in _PRESETS else _of_plugin(known, name)
    if overrides:
        scheme = evolve(scheme, weights=_override(known, scheme.weights, overrides))
    return scheme


def _built_in(name: str) -> Scheme:
    weights, inputs = _PRESETS[name]
    return Scheme(targets=("Linear",), weights=weights, input_activations=inputs)


def _of_plugin(name: str, given: str) -> Scheme:
    """The scheme that a plugin offers under a name, in upper case.

    Raises:
        SchemeError: none does.
        PluginError: the plugin cannot be used.
    """
    try:
        found = find("presets", name)
    except UnknownPluginError as error:
        known = [*_PRESETS, *(plugin.name for plugin in available("presets"))]
        named = next((plugin for plugin in available("recipes") if plugin.name == given.lower()), None)
        algorithm = None if named is None or "${scheme}" not in named.load().text else named.name
        if algorithm is not None:
            raise SchemeError(
                f"{given!r} is an algorithm, not a scheme: pass one of both, such as --scheme W4A16 --algorithm "
                f"{algorithm}, or name the modifier in a recipe and the scheme as its setting"
            ) from error
        raise SchemeError(
            f"no preset scheme is called {given!r}{suggest(given, known)} (there are: {', '.join(known)})"
        ) from error
    if not isinstance(found, Scheme):
        raise BrokenPluginError(f"the preset {name!r} is a {type(found).__name__}, not a Scheme")
    return found


def _override(name: str, weights: QuantizationArgs | None, overrides: dict[str, Any]) -> QuantizationArgs:
    """The weights' arguments with other fields."""
    if weights is None:
        raise SchemeError(f"{name} quantizes no weights, so {', '.join(overrides)} cannot be set")
    settings = [attribute.name for attribute in fields(QuantizationArgs)]
    for setting in overrides:
        if setting not in settings:
            raise SchemeError(f"{name}: weights have no setting {setting!r}{suggest(setting, settings)}")
    size = overrides.get("group_size")
    if size is not None and (weights.scale_dtype or weights.scale_bits) and size != weights.group_size:
        raise SchemeError(f"{name} has groups of {weights.group_size} by definition, group_size={size!r} is not {name}")
    if size is not None and "strategy" not in overrides:
        channel = size == -1
        overrides = overrides | {"group_size": None if channel else size, "strategy": "channel" if channel else None}
        overrides.setdefault("block_structure", None)
        if weights.strategy == "tensor_group":
            overrides["strategy"] = weights.strategy
    try:
        return evolve(weights, **overrides)
    except SchemeError as error:
        raise SchemeError(f"{name}: weights: {error}") from error
