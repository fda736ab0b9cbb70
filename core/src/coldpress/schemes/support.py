"""What this release can quantize, among the schemes that are valid."""

import torch

from coldpress.errors import SchemeError
from coldpress.schemes.number_format import number_format
from coldpress.schemes.quantization_args import QuantizationArgs, is_microscaled
from coldpress.schemes.scheme import Scheme

_WEIGHTS = (
    "weights: int2 to int8, float4, float6 and float8, static, one scale a tensor, channel, group or block; "
    "scales of int in float16, or in float8 with a global one (NVFP4), or powers of two for groups of 32 (MX)"
)
_INPUTS = (
    "input_activations: int, float4, float6 and float8, dynamic for a token, tensor or group, static for a tensor, "
    "local for NVFP4"
)
_MICROSCALED = (4, 6, 8)
_MICROSCALED_GROUP = 32


def check_supported(scheme: Scheme) -> None:
    """Refuse a valid scheme that this release cannot quantize.

    Raises:
        SchemeError: what is not quantized yet, and what is.
    """
    for name, args, known in (
        ("weights", scheme.weights, _WEIGHTS),
        ("input_activations", scheme.input_activations, _INPUTS),
    ):
        reason = args and _missing(args)
        if args and not reason:
            reason = _missing_for_weights(args) if name == "weights" else _missing_for_inputs(args)
        if reason:
            raise SchemeError(f"{name}: {reason} is not quantized yet; supported now: {known}")
    if scheme.output_activations:
        raise SchemeError(
            f"output_activations: the output of a layer is not quantized yet; supported now: {_WEIGHTS}; {_INPUTS}"
        )


def _missing(args: QuantizationArgs) -> str | None:
    """What no tensor can be quantized to yet."""
    kind = f"{args.type}{args.num_bits}"
    if args.strategy == "attn_head":
        return f"strategy {args.strategy!r}"
    if args.type == "float" and not args.symmetric:
        return f"asymmetric {kind}"
    if is_microscaled(args):
        usual = args.strategy == "group" and args.group_size == _MICROSCALED_GROUP
        fits = usual and args.num_bits in _MICROSCALED
        return (
            None if fits else f"{kind} with powers of two as scales of {args.strategy} {args.group_size or ''}".strip()
        )
    two_levels = args.strategy == "tensor_group" and args.scale_dtype == torch.float8_e4m3fn
    if args.strategy == "tensor_group" and not (two_levels and kind == "float4"):
        return f"{kind} with strategy 'tensor_group' and scales in {args.scale_dtype}"
    if args.scale_dtype is not None and not two_levels and (args.type, args.scale_dtype) != ("int", torch.float16):
        return f"{kind} with scales in {args.scale_dtype}"
    if args.scale_bits is not None and args.dynamic:
        return f"dynamic {kind} with scales of {args.scale_bits} bits"
    number_format(args)
    return None


def _missing_for_weights(args: QuantizationArgs) -> str | None:
    return f"dynamic={args.dynamic!r}" if args.dynamic else None


def _missing_for_inputs(args: QuantizationArgs) -> str | None:
    if args.scale_dtype == torch.float16 or args.scale_bits is not None:
        return "scales that are rounded" if args.scale_bits is None else f"scales of {args.scale_bits} bits"
    if args.strategy == "tensor_group" and args.dynamic != "local":
        return f"strategy 'tensor_group' with dynamic={args.dynamic!r}"
    if args.signed_scales:
        return "signed scales"
    if not args.dynamic and args.strategy != "tensor":
        return f"static strategy {args.strategy!r}"
    return None
