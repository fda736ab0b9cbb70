"""What this release can quantize, among the schemes that are valid."""

from coldpress.errors import SchemeError
from coldpress.schemes.number_format import number_format
from coldpress.schemes.quantization_args import QuantizationArgs
from coldpress.schemes.scheme import Scheme

_WEIGHTS = "weights: int2 to int8 and float8, static, one scale a tensor, channel, group or block"
_INPUTS = "input_activations: int and float8, dynamic for a token, tensor or group, static for a tensor"


def check_supported(scheme: Scheme) -> None:
    """Refuse a valid scheme that this release cannot quantize yet: MX and NVFP4 scales, float4, float6, outputs.

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
    if args.scale_dtype is not None:
        return f"{kind} with scales in {args.scale_dtype}"
    if args.strategy in ("tensor_group", "attn_head"):
        return f"strategy {args.strategy!r}"
    if args.type == "float" and args.num_bits in (4, 6):
        return kind
    if args.type == "float" and not args.symmetric:
        return f"asymmetric {kind}"
    number_format(args)
    return None


def _missing_for_weights(args: QuantizationArgs) -> str | None:
    return f"dynamic={args.dynamic!r}" if args.dynamic else None


def _missing_for_inputs(args: QuantizationArgs) -> str | None:
    if not args.dynamic and args.strategy != "tensor":
        return f"static strategy {args.strategy!r}"
    return None
