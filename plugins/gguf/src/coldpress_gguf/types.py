"""Which type of ggml holds a scheme, and why none does."""

from collections.abc import Mapping

import torch

from coldpress.plugin import QuantizationArgs, Scheme, SchemeError
from coldpress_gguf.architecture import stack_of
from coldpress_gguf.blocks import TYPES, BlockType

_SUPER = {4: "Q4_K", 5: "Q5_K"}


def type_of(scheme: Scheme) -> BlockType:
    """The type of a scheme that `obstacle` has nothing to say of."""
    name = _name(scheme.weights) if scheme.weights is not None else None
    assert name is not None
    return TYPES[name]


def check_experts(schemes: Mapping[str, Scheme | None]) -> None:
    """Refuse experts of different types: those of a block are one tensor in a file, which has one type.

    Args:
        schemes: layer name to scheme, None of layers that are not quantized.

    Raises:
        SchemeError: names two of them.
    """
    known: dict[str, tuple[str, str | None]] = {}
    for name, scheme in schemes.items():
        stack, args = stack_of(name), None if scheme is None else scheme.weights
        if stack is None:
            continue
        kind = None if args is None else _name(args)
        first, other = known.setdefault(stack, (name, kind))
        if kind != other:
            raise SchemeError(
                f"{first} is {other or 'not quantized'} and {name} is {kind or 'not quantized'}, and the experts of a "
                "block are one tensor of one type in a GGUF file: give all of them one scheme, or ignore all of them"
            )


def obstacle(scheme: Scheme, shape: tuple[int, int]) -> str | None:
    """Why a layer cannot be written with its codes; None when it can.

    Args:
        scheme: of the layer, completed.
        shape: of its weight, (O, I).
    """
    args, width = scheme.weights, shape[1]
    if args is None or scheme.input_activations is not None or scheme.output_activations is not None:
        return "llama.cpp rounds inputs in its own way; choose a scheme of weights alone, such as W4A16 or NVFP4A16"
    name = _name(args)
    if name is None:
        return _why_none(args)
    if args.type == "int" and args.scale_bits is None and args.scale_dtype != torch.float16:
        return f"scales are float16, not {args.scale_dtype}; leave scale_dtype out"
    if width % TYPES[name].size:
        return f"{width} columns do not divide into blocks of {TYPES[name].size}, which {name} has; ignore the layer"
    return None


def _name(args: QuantizationArgs) -> str | None:
    if args.type == "float":
        return _float_name(args)
    if args.scale_bits is not None:
        return _super_name(args)
    whole = args.strategy == "group" and args.group_size is not None and args.group_size % 32 == 0
    if not (whole or args.strategy in ("channel", "tensor")):
        return None
    if args.zp_dtype is not None and args.zp_dtype.is_floating_point:
        return None
    if args.num_bits <= 4:
        return "Q4_0" if args.symmetric else "Q4_1"
    if args.num_bits == 5:
        return "Q5_0" if args.symmetric else "Q5_1"
    return "Q8_0" if args.symmetric and args.num_bits <= 8 else None


def _float_name(args: QuantizationArgs) -> str | None:
    if args.num_bits != 4 or not args.symmetric:
        return None
    if args.strategy == "tensor_group" and args.group_size == 16:
        return "NVFP4"
    return "MXFP4" if args.strategy == "group" and args.group_size == 32 and args.scale_dtype == torch.uint8 else None


def _super_name(args: QuantizationArgs) -> str | None:
    if args.symmetric:
        return "Q6_K" if (args.num_bits, args.group_size, args.scale_bits) == (6, 16, 8) else None
    return _SUPER.get(args.num_bits) if (args.group_size, args.scale_bits) == (32, 6) else None


def _why_none(args: QuantizationArgs) -> str:
    kind = f"{args.type}{args.num_bits}"
    if args.type == "float":
        return f"no type holds {kind} weights with these scales; MXFP4A16 and NVFP4A16 are held"
    if args.scale_bits is not None:
        return f"no type holds {kind} with scales of {args.scale_bits} bits for groups of {args.group_size}"
    if args.strategy not in ("group", "channel", "tensor"):
        return f"no type holds scales of strategy {args.strategy!r}"
    if args.strategy == "group" and args.group_size and args.group_size % 32:
        return f"blocks have 32 columns, which groups of {args.group_size} do not fill; choose a multiple of 32"
    if args.zp_dtype is not None:
        return f"zero points are whole numbers, not {args.zp_dtype}"
    return f"no type holds asymmetric {kind}; int2 to int5 may be asymmetric, int6 to int8 not"
