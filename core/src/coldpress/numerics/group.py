"""Which elements share a scale, as a view: the last dimension of a grouped tensor is one group."""

from torch import Tensor
from torch.nn.functional import pad

from coldpress.errors import SchemeError
from coldpress.schemes import QuantizationArgs
from coldpress.schemes.fit import USUAL_GROUP_SIZES


def group(x: Tensor, args: QuantizationArgs) -> Tensor:
    """Put the elements that share a scale side by side; no copy, but for blocks and what is not contiguous.

    Args:
        x: a weight, [O, I], or activations, [..., I]; keys, values or queries, [T, H, D].
        args: who shares a scale.

    Returns:
        [*scale_shape, n]: tensor [1, O*I]; channel and token [..., 1, I]; group and tensor_group [..., I/g, g];
        block (r, c) [ceil(O/r), ceil(I/c), r*c], where blocks that stick out are filled with zeros; attn_head
        [H, 1, 1, T*D].

    Raises:
        SchemeError: groups do not divide the columns, or heads shall share scales and there are none.
    """
    if args.strategy == "tensor":
        return x.reshape(1, -1)
    if args.strategy in ("channel", "token"):
        return x.unsqueeze(-2)
    if args.strategy in ("group", "tensor_group"):
        return split_columns(x, args)
    if args.strategy == "block":
        return split_blocks(x, args).transpose(-3, -2).flatten(-2)
    if x.ndim == 3:
        return x.transpose(0, 1).reshape(x.shape[1], 1, 1, -1)
    raise SchemeError(f"strategy {args.strategy!r} groups the heads of an attention, not a matrix")


def ungrouped(grouped: Tensor, shape: tuple[int, ...], args: QuantizationArgs) -> Tensor:
    """The inverse of `group` for a weight.

    Args:
        grouped: [*scale_shape, n].
        shape: of the weight, (O, I).
        args: who shares a scale.

    Returns:
        [O, I]; a view where `group` makes one.
    """
    if args.strategy != "block":
        return grouped.reshape(shape)
    (rows, columns), (high, wide) = shape, block_sides(args)
    blocks = grouped.reshape(*grouped.shape[:2], high, wide).transpose(1, 2)  # [O/r, r, I/c, c]
    return blocks.reshape(grouped.shape[0] * high, -1)[:rows, :columns].contiguous()


def scale_shape(shape: tuple[int, ...], args: QuantizationArgs) -> tuple[int, ...]:
    """The shape of the scales of a tensor of this shape.

    Raises:
        SchemeError: as `group`.
    """
    rows, width = shape[:-1], shape[-1]
    if args.strategy == "tensor":
        return (1,)
    if args.strategy in ("channel", "token"):
        return (*rows, 1)
    if args.strategy in ("group", "tensor_group"):
        return (*rows, width // _dividing(width, args))
    if args.strategy == "block":
        high, wide = block_sides(args)
        return (*rows[:-1], -(-rows[-1] // high), -(-width // wide))
    raise SchemeError(f"strategy {args.strategy!r} groups the heads of an attention, not a matrix")


def split_columns(x: Tensor, args: QuantizationArgs) -> Tensor:
    """Groups of columns, [..., I] -> [..., I/g, g]; a view.

    Raises:
        SchemeError: groups do not divide the columns.
    """
    size = _dividing(x.shape[-1], args)
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


def split_blocks(x: Tensor, args: QuantizationArgs) -> Tensor:
    """Blocks of rows and columns, [..., O, I] -> [..., O/r, r, I/c, c]; a view, unless zeros must fill the last."""
    high, wide = block_sides(args)
    missing_rows, missing_columns = -x.shape[-2] % high, -x.shape[-1] % wide
    if missing_rows or missing_columns:
        x = pad(x, (0, missing_columns, 0, missing_rows))
    rows, columns = x.shape[-2:]
    return x.reshape(*x.shape[:-2], rows // high, high, columns // wide, wide)


def block_sides(args: QuantizationArgs) -> tuple[int, int]:
    """Rows and columns of a block."""
    assert args.block_structure is not None  # validated: strategy block has one
    return args.block_structure


def _dividing(width: int, args: QuantizationArgs) -> int:
    """The group size, which divides `width`."""
    size = args.group_size
    assert size is not None  # validated: the grouped strategies have one
    if width % size:
        fits = [str(usual) for usual in USUAL_GROUP_SIZES if width % usual == 0]
        advice = f"{', '.join(fits)} would" if fits else "no usual size does"
        raise SchemeError(
            f"{width} columns do not split into groups of {size} ({advice}); "
            "choose a group_size that divides, -1 for one scale a channel, or ignore the layer"
        )
    return size
