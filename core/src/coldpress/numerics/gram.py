"""Gram matrices x^T x of tokens, in float32, as fast as the machine sums products and as sound as GPTQ needs.

    16-bit inputs on a CPU that has them     int8 products with exact sums, the upper triangle only (below)
    16-bit inputs on a CUDA GPU              16-bit products, summed and put out in float32
    float32 inputs, and everything else      float32 products, the upper triangle only

The int8 way.  A step of channel j is s_j = min(max |x_j|, 6.5 rms_j) / 127.  Numbers are counted in steps, a fixed
random number from -1/2 to 1/2 is added, and they are rounded and clipped to 127: A.  What is clipped off, S, is kept
(few numbers, by Chebyshev at most 1 in 42).  Sums of int8 products are exact, so A^T A is, and the sums with S are
float32:

    G = A^T A + C + C^T,    C = S^T (A + S / 2),    then rows and columns are scaled so that the diagonal is that of x

This is (A + S)^T (A + S) scaled by a diagonal from both sides: positive semidefinite whatever x is, but for the
rounding of float32; a better matrix that is rounded to 16 bits, as a product of 16-bit matrices on a CPU is, is not.
The random numbers make the error of a rare or often repeated token independent of its other channels, so that it
shrinks with the root of the number of tokens.  See docs/decisions/0011-gram.md for what that leaves.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

_BLOCK = 256  # columns of a block: small enough to skip most of the lower triangle, large enough to multiply fast
_ROWS = 256  # tokens that are quantized while they are in the cache; times any width a multiple of 8
_STEPS = 127
_RANGE = 6.5  # root mean squares that the steps reach: less costs time for the tails, more costs precision
_FEWEST_TOKENS = 512  # below, the error of int8 has not shrunk enough
_FEWEST_COLUMNS = 128  # below, quantizing costs more than it saves
_SMALLEST = 1e-20  # a channel with smaller steps is zero: its squares are, in float32
_MOST_TOKENS = 131072  # sums of int32 do not overflow: 2^17 * 127^2 < 2^31


def gram(x: Tensor) -> Tensor:
    """The Gram matrix x^T x.

    The same tokens give the same bits, on one machine with one number of threads.

    Args:
        x: tokens, [T, I], finite, of any floating dtype.

    Returns:
        The matrix, [I, I] float32, symmetric in every bit, where `x` is.
    """
    return unfolded(folded_gram(x))


def folded_gram(x: Tensor, *, seen: int = 0) -> Tensor:
    """A matrix M with the Gram matrix's diagonal, where M[i, j] + M[j, i] is its element beside it, [I, I] float32.

    Sums of such matrices need `unfolded` only once.

    Args:
        x: tokens, [T, I].
        seen: tokens that are in the same sum already: errors of rounding differ from theirs, and cancel.
    """
    if x.is_cuda and x.element_size() == 2 and torch.version.hip is None:
        return torch.mm(x.t(), x, out_dtype=torch.float32).triu_()
    if not _counts_in_int8(x):
        return _folded_float32(x.float())
    total, *rest = (_folded_int8(part, seen + i * _MOST_TOKENS) for i, part in enumerate(torch.split(x, _MOST_TOKENS)))
    for part in rest:
        total += part
    return total


def unfolded(folded: Tensor) -> Tensor:
    """The symmetric matrix, [I, I], of a folded one, in its memory."""
    for start, stop in _blocks(len(folded)):
        inside = folded[start:stop, start:stop]
        beside = inside.triu(1) + inside.tril(-1).t()
        inside.copy_(torch.diag(inside.diagonal()) + beside + beside.t())
        folded[start:stop, stop:] += folded[stop:, start:stop].t()
        folded[stop:, start:stop] = folded[start:stop, stop:].t()
    return folded


def _counts_in_int8(x: Tensor) -> bool:
    """Whether int8 products are fast here, and precise enough for these inputs."""
    if x.device.type != "cpu" or x.element_size() != 2:
        return False
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    large = x.shape[0] >= _FEWEST_TOKENS and x.shape[1] >= _FEWEST_COLUMNS
    return large and supported is not None and bool(supported())


def _folded_float32(x: Tensor) -> Tensor:
    """The folded matrix, [I, I], by float32 products, whatever precision the program has set for those."""
    folded = x.new_zeros(x.shape[1], x.shape[1])
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        for start, stop in _blocks(x.shape[1]):
            folded[start:stop, start:] = x[:, start:stop].t() @ x[:, start:]
            folded[start:stop, start:stop].triu_()
    finally:
        torch.set_float32_matmul_precision(precision)
    return folded


def _folded_int8(x: Tensor, seen: int = 0) -> Tensor:
    """The folded matrix, [I, I], by int8 products; see the top of this file."""
    largest, energy = _sizes(x)
    limit = torch.minimum(largest, _RANGE * (energy / len(x)).sqrt())  # [I]
    scale = limit / _STEPS
    folded = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float32)
    codes = _quantized(x, scale, block=seen // _ROWS, tails=folded if bool((largest > limit).any()) else None)
    folded.diagonal().mul_(2)
    for start, stop in _blocks(x.shape[1]):
        sums = torch._int_mm(codes[:, start:stop].t(), codes[:, start:])  # [b, I - start], exact int32
        sums[:, : stop - start].triu_()
        folded[start:stop, start:].addcmul_(sums.float().mul_(scale[start:stop, None]), scale[start:])
    found = folded.diagonal()
    exact = torch.where(found > 0, (energy / found).sqrt(), 1.0)  # [I]
    return folded.mul_(exact).mul_(exact[:, None])


def _sizes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest magnitude and the sum of squares of every channel, [I] float32 each."""
    part = x.new_empty(_ROWS, x.shape[1], dtype=torch.float32)
    largest, energy = part.new_zeros(x.shape[1]), part.new_zeros(x.shape[1])
    for rows in torch.split(x, _ROWS):
        squares = part[: len(rows)].copy_(rows).square_()
        torch.maximum(largest, squares.amax(0), out=largest)
        energy += squares.sum(0)
    return largest.sqrt_(), energy


def _quantized(x: Tensor, scale: Tensor, *, block: int, tails: Tensor | None) -> Tensor:
    """Numbers in steps of `scale`, dithered, rounded and clipped, [T, I] int8.

    Args:
        x: tokens, [T, I].
        scale: one step, [I]; 0 for a channel of zeros.
        block: which numbers are added to the first tokens.
        tails: where C of what was clipped is added, [I, I]; None if nothing is large enough.
    """
    codes = torch.empty_like(x, dtype=torch.int8)
    steps = x.new_zeros(_ROWS, x.shape[1], dtype=torch.float32)
    inverse = torch.where(scale > _SMALLEST, 1 / scale, 0.0)  # [I]
    for index, (rows, target) in enumerate(zip(torch.split(x, _ROWS), torch.split(codes, _ROWS), strict=True)):
        part = steps[: len(rows)].copy_(rows).mul_(inverse)
        part.add_(_dither(block + index, len(rows), x.shape[1])).round_()
        places = _beyond(steps) if tails is not None else None  # before they are clipped
        target.copy_(part.clamp_(-_STEPS, _STEPS))
        if tails is not None and places is not None:
            _add_tails(tails, rows, part, scale, places)
        steps[len(rows) :] = 0
    return codes


def _beyond(steps: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the numbers that will be clipped, [n] each, row by row.

    Words of eight are looked at first, because to look for places in a tensor takes longer than to multiply it.
    """
    excess = (steps - steps.clamp(-_STEPS, _STEPS)).clamp_(-1, 1)
    marks = excess.to(torch.int8).view(-1)
    words = marks.view(torch.int64).nonzero().view(-1)
    word, byte = marks.view(-1, 8)[words].nonzero().unbind(1)
    flat = words[word] * 8 + byte
    return flat // steps.shape[1], flat % steps.shape[1]


def _add_tails(tails: Tensor, x: Tensor, steps: Tensor, scale: Tensor, places: tuple[Tensor, Tensor]) -> None:
    """Add C = S^T (A + S / 2) of some tokens.

    Args:
        tails: changed, [I, I].
        x: the tokens, [t, I].
        steps: A in steps, [t, I].
        scale: one step, [I].
        places: rows and columns of S, [n] each, row by row.
    """
    rows, channels = places
    cut = x[rows, channels].float() - steps[rows, channels] * scale[channels]  # S, [n]
    used, row = torch.unique_consecutive(rows, return_inverse=True)
    values = steps[used].mul_(scale)  # [u, I]
    values[row, channels] += cut / 2
    tails.index_add_(0, channels, values[row].mul_(cut[:, None]))


@lru_cache(maxsize=8)
def _noise(count: int) -> Tensor:
    """Random numbers from -1/2 to 1/2, [count], always the same ones."""
    return torch.rand(count, generator=torch.Generator().manual_seed(0)).sub_(0.5)


def _dither(index: int, rows: int, width: int) -> Tensor:
    """Random numbers for the tokens of a block, [rows, width], windows of one short row that stays in the cache."""
    start = index * 7919 % 2**14  # a prime: blocks are out of step with each other and with samples
    return _noise(width + 2**15)[start:].as_strided((rows, width), (61, 1))


def _blocks(width: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + _BLOCK, width)) for start in range(0, width, _BLOCK))
