"""A scheme in a person's words."""

from coldpress.schemes.quantization_args import QuantizationArgs
from coldpress.schemes.scheme import Scheme


def describe(scheme: Scheme) -> str:
    """In words: `int4 group 64` or `float8 channel, inputs float8 token dynamic`."""
    parts = [_words(scheme.weights)] if scheme.weights else ["weights as they are"]
    if scheme.input_activations:
        parts.append(f"inputs {_words(scheme.input_activations)}")
    return ", ".join(parts)


def _words(args: QuantizationArgs) -> str:
    where = {"group": f"group {args.group_size}", "tensor_group": f"tensor_group {args.group_size}"}
    block = f"block {args.block_structure[0]}x{args.block_structure[1]}" if args.block_structure else "block"
    strategy = where.get(str(args.strategy), block if args.strategy == "block" else str(args.strategy))
    sides = "" if args.symmetric else " asymmetric"
    dynamic = {True: " dynamic", False: "", "local": " dynamic local"}[args.dynamic]
    scales = "" if args.scale_bits is None else f" scales of {args.scale_bits} bits"
    signed = " signed scales" if args.signed_scales else ""
    return f"{args.type}{args.num_bits}{sides} {strategy}{scales}{signed}{dynamic}"
