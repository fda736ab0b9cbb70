"""Whether a scheme fits the shape of a layer."""

from coldpress.errors import SchemeError
from coldpress.schemes.quantization_args import GROUPED, SUPER_BLOCK
from coldpress.schemes.scheme import Scheme

USUAL_GROUP_SIZES = (16, 32, 48, 64, 96, 128, 192, 256)


def check_fit(scheme: Scheme, shape: tuple[int, int]) -> None:
    """Refuse group sizes that do not divide the width of a layer.

    Args:
        scheme: of the layer.
        shape: of its weight, (O, I).

    Raises:
        SchemeError: says the width, the group size and which usual sizes divide.
    """
    for name, args in (("weights", scheme.weights), ("input_activations", scheme.input_activations)):
        if args is None or args.strategy not in GROUPED or not args.group_size:
            continue
        width = shape[1]
        if args.scale_bits is not None and width % SUPER_BLOCK:
            raise SchemeError(
                f"{name}: scale_bits needs columns that {SUPER_BLOCK} divides, and this layer has {width}: choose a "
                "scheme without it, or ignore the layer"
            )
        if width % args.group_size:
            fitting = [str(size) for size in USUAL_GROUP_SIZES if width % size == 0]
            advice = f"{', '.join(fitting)} would divide it" if fitting else "only one scale a row (-1) would do"
            raise SchemeError(
                f"{name}: group_size {args.group_size} does not divide the {width} columns of this layer; {advice}, or "
                "ignore the layer"
            )
