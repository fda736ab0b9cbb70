"""Which layout a layer is written in, and whether it can be: the library calls it the format of a config group.

int weights, inputs left alone      pack-quantized     b bits a weight
int weights of fewer than 8 bits    pack-quantized     whatever the inputs are
int8 weights and inputs             int-quantized      a byte a weight
float8 weights and inputs           float-quantized    a byte a weight
float8 weights alone                naive-quantized    a byte a weight
float4 weights in groups of 16      nvfp4-pack-quantized    two to a byte, scales in float8, a global scale
float4, groups of 32, MX scales     mxfp4-pack-quantized    two to a byte, scales as exponents
float6, groups of 32, MX scales     mxfp6-pack-quantized    four to three bytes, scales as exponents
float8, groups of 32, MX scales     mxfp8-quantized    a byte a weight, scales as exponents
on request                          dense              the dequantized weight, beside its scales
"""

from collections.abc import Iterable

from attrs import evolve
from torch import dtype, float16, uint8

from coldpress.plugin import QuantizationArgs, Scheme

PACK = "pack-quantized"
INT = "int-quantized"
FLOAT = "float-quantized"
NAIVE = "naive-quantized"
DENSE = "dense"
NVFP4 = "nvfp4-pack-quantized"
MXFP4 = "mxfp4-pack-quantized"
MXFP6 = "mxfp6-pack-quantized"
MXFP8 = "mxfp8-quantized"
LAYOUTS = (PACK, INT, FLOAT, NAIVE, NVFP4, MXFP4, MXFP6, MXFP8, DENSE)
MICROSCALED = {MXFP4: 4, MXFP6: 6, MXFP8: 8}
"""Layouts whose scales are exponents, and how many bits their weights have."""
NVFP4_BITS = 4
PACKED_FLOATS = (NVFP4, MXFP4, MXFP6)
WITHOUT_WEIGHT = (PACK, *PACKED_FLOATS)
"""Layouts that have `weight_packed` in place of `weight`."""

_STRATEGIES = ("tensor", "channel", "group", "block")
_INPUT_STRATEGIES = ("token", "tensor", "group")
_BYTE = 8


def choose(scheme: Scheme) -> str:
    """The layout of a scheme that names none.

    The library packs weights of fewer than 8 bits only where inputs are left alone, and else writes a byte for each;
    readers take the packed form in both cases, which is half of the size or less.
    """
    args = scheme.weights
    if args is None:
        return DENSE
    if _own(args) is not None:
        return str(_own(args))
    if args.type == "float":
        return FLOAT if scheme.input_activations else NAIVE
    return PACK if args.num_bits < _BYTE or not scheme.input_activations else INT


def is_read_dense(schemes: Iterable[Scheme]) -> bool:
    """Whether transformers makes dense weights of all layers, with `dequantize`, that compute what codes stand for.

    It unpacks all layers by the first scheme, leaves inputs as they are, and rounds scales of packed floats otherwise.

    Args:
        schemes: of all quantized layers, `format` filled in.
    """
    kinds = {evolve(scheme, targets=()) for scheme in schemes}
    return len(kinds) == 1 and all(kind.format == PACK and not kind.input_activations for kind in kinds)


def own_scale_dtype(args: QuantizationArgs) -> dtype | None:
    """The dtype that scales are stored in, where it is not that of the weights.

    Scales that were rounded to float16, for the sake of another format, are scales like any.
    """
    return None if args.type == "int" and args.scale_dtype == float16 else args.scale_dtype


def without_float16(scheme: Scheme) -> Scheme:
    """The scheme as `config_groups` tell it."""
    args = scheme.weights
    return scheme if args is None else evolve(scheme, weights=evolve(args, scale_dtype=own_scale_dtype(args)))


def obstacle(scheme: Scheme, layout: str) -> str | None:
    """Why a layer of this scheme cannot be written in this layout; None when it can."""
    if scheme.weights is not None and scheme.weights.scale_bits is not None:
        return f"scales of {scheme.weights.scale_bits} bits, as in Q4_K, are for the format gguf; choose W4A16"
    if layout not in LAYOUTS:
        return f"there is no layout {layout!r}; there are {', '.join(LAYOUTS)}"
    if scheme.weights is None:
        return "its scheme quantizes no weights, which no reader of this format serves"
    if scheme.output_activations:
        return "output_activations are not written yet"
    return (
        _weight_obstacle(scheme.weights)
        or _input_obstacle(scheme.input_activations)
        or _layout_obstacle(scheme.weights, layout)
    )


def _weight_obstacle(args: QuantizationArgs) -> str | None:
    kind = f"{args.type}{args.num_bits}"
    own = _own(args)
    if own_scale_dtype(args) is not None and own is None:
        return f"{kind} weights in groups of {args.group_size} with scales in {args.scale_dtype} are not written"
    if args.num_bits > _BYTE or (args.type == "float" and args.num_bits != _BYTE and own is None):
        return f"{kind} weights are not written; int weights of up to 8 bits, float8, NVFP4 and MX are"
    if args.strategy not in _STRATEGIES and own is None:
        return f"weights with strategy {args.strategy!r} are not written yet; {', '.join(_STRATEGIES)} are"
    if args.dynamic:
        return "the scales of weights are stored, so they cannot be dynamic"
    if args.type == "float" and not args.symmetric:
        return "float8 weights have no zero point in this format; set symmetric=true"
    return None


def _input_obstacle(args: QuantizationArgs | None) -> str | None:
    if args is None:
        return None
    if args.dynamic == "local" and args.strategy == "tensor_group":
        return None
    if args.dynamic == "local" or args.strategy not in _INPUT_STRATEGIES:
        return f"inputs with strategy {args.strategy!r}, dynamic={args.dynamic!r} are not written yet"
    if not args.dynamic and args.strategy != "tensor":
        return f"static inputs with strategy {args.strategy!r} are not written yet; one scale a tensor is"
    return None


def _own(args: QuantizationArgs) -> str | None:
    """The layout of schemes whose scales have a dtype of their own; None for all others."""
    if args.strategy == "tensor_group" and args.type == "float" and args.num_bits == NVFP4_BITS:
        return NVFP4
    if args.type == "float" and args.scale_dtype == uint8:
        return next((layout for layout, bits in MICROSCALED.items() if bits == args.num_bits), None)
    return None


def _layout_obstacle(args: QuantizationArgs, layout: str) -> str | None:
    own = _own(args)
    if layout in (NVFP4, *MICROSCALED) or (own and layout != DENSE):
        kind = f"{args.type}{args.num_bits} weights with strategy {args.strategy!r}"
        return None if layout == own else f"the layout {layout!r} does not hold {kind} and scales in {args.scale_dtype}"
    needed = {PACK: "int", INT: "int", FLOAT: "float", NAIVE: args.type, DENSE: args.type}[layout]
    if args.type != needed:
        return f"the layout {layout!r} holds {needed} weights, not {args.type}{args.num_bits}"
    return None
