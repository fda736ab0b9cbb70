"""Gram matrices x^T x of tokens, in float32, as fast as the machine sums products and as sound as GPTQ needs.

    16-bit inputs on a CPU that has them     int8 products with exact sums, the upper triangle only (below)
    16-bit inputs on a CUDA GPU              16-bit products, summed and output in float32
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
from torch.nn.functional import embedding_bag

_BLOCK = 256  # columns of a block: small enough to skip most of the lower triangle, large enough to multiply fast
_ROWS = 256  # tokens that are quantized while they are in the cache; times any width a multiple of 8
_STEPS = 127
_BAGS = 2048  # tokens whose tails are summed at once, while they are in the cache
_SUMMED = 512  # columns whose tails are summed at once, from numbers that stay in the cache
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
    limit = torch.minimum(largest.amax(0), _RANGE * (energy / len(x)).sqrt())  # [I]
    codes, places, cut = _quantized(x, limit, largest, block=seen // _ROWS)
    folded = _tails(codes, places, cut)  # in steps, as everything is from here on
    folded.diagonal().mul_(2)
    for start, stop in _blocks(x.shape[1]):
        sums = torch._int_mm(codes[:, start:stop].t(), codes[:, start:])  # [b, I - start], exact int32
        sums[:, : stop - start].triu_()
        folded[start:stop, start:] += sums
    found = folded.diagonal()
    exact = torch.where(found > 0, (energy / found).sqrt(), 0.0)  # [I]
    return folded.mul_(exact).mul_(exact[:, None])


def _sizes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest magnitude of every channel in each block of `_ROWS` tokens, [blocks, I], and its energy, [I]."""
    part = x.new_empty(_ROWS, x.shape[1], dtype=torch.float32)
    blocks = torch.split(x, _ROWS)
    largest, energy = part.new_empty(len(blocks), x.shape[1]), part.new_zeros(x.shape[1])
    for index, rows in enumerate(blocks):
        squares = part[: len(rows)].copy_(rows).square_()
        torch.amax(squares, 0, out=largest[index])
        energy += squares.sum(0)
    return largest.sqrt_(), energy


def _quantized(x: Tensor, limit: Tensor, largest: Tensor, *, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers in steps, dithered, rounded and clipped, and what was clipped.

    Args:
        x: tokens, [T, I].
        limit: 127 steps, [I]; 0 for a channel of zeros.
        largest: magnitude in each block of `_ROWS` tokens, [blocks, I]: only where it is beyond the limit is looked.
        block: which numbers are added to the first tokens.

    Returns:
        A, [T, I] int8; tokens and channels of S, [2, n]; S, [n] float32.
    """
    codes = torch.empty_like(x, dtype=torch.int8)
    steps = x.new_zeros(_ROWS, x.shape[1], dtype=torch.float32)
    inverse = torch.where(limit > _SMALLEST, _STEPS / limit, 0.0)  # [I]
    beyond = largest > limit
    places, cut = [beyond.new_empty(2, 0, dtype=torch.int64)], [steps.new_empty(0)]
    for index, (rows, target) in enumerate(zip(torch.split(x, _ROWS), torch.split(codes, _ROWS), strict=True)):
        part = steps[: len(rows)].copy_(rows).mul_(inverse)
        part.add_(_dither(block + index, len(rows), x.shape[1])).round_()
        steps[len(rows) :] = 0
        channels = beyond[index].nonzero().view(-1)
        if len(channels):
            excess = steps[:, channels]
            excess -= excess.clamp(-_STEPS, _STEPS)
            row, column = _nonzero(excess)
            places.append(torch.stack([row + index * _ROWS, channels[column]]))
            cut.append(excess[row, column])
        target.copy_(part.clamp_(-_STEPS, _STEPS))
    return codes, torch.cat(places, 1), torch.cat(cut)


def _nonzero(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of what is not zero in a matrix of a multiple of eight integers, [n] each, row by row.

    Words of eight are looked at first, because to look for places in a tensor takes longer than to multiply it.
    """
    marks = x.clamp(-1, 1).to(torch.int8).view(-1)
    words = marks.view(torch.int64).nonzero().view(-1)
    word, byte = marks.view(-1, 8)[words].nonzero().unbind(1)
    flat = words[word] * 8 + byte
    return flat // x.shape[1], flat % x.shape[1]


def _tails(codes: Tensor, places: Tensor, cut: Tensor) -> Tensor:
    """C = S^T (A + S / 2), [I, I] float32: for each channel some rows of A + S / 2, weighed and added up.

    Args:
        codes: A, [T, I].
        places: tokens and channels of S, [2, n], in the order of tokens.
        cut: S, [n].
    """
    width = codes.shape[1]
    total = cut.new_zeros(width, width)
    starts = range(0, len(codes), _BAGS)
    edges = torch.searchsorted(places[0].contiguous(), torch.tensor([*starts, len(codes)]))
    for start, first, last in zip(starts, edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if first == last:
            continue
        order = places[1, first:last].argsort(stable=True)
        row, channel, shares = (
            places[0, first:last][order] - start,
            places[1, first:last][order],
            cut[first:last][order],
        )
        bags = torch.searchsorted(channel, torch.arange(width + 1))  # where each channel's tokens begin
        for left in range(0, width, _SUMMED):
            right = min(left + _SUMMED, width)
            values = codes[start : start + _BAGS, left:right].float()  # [t, c]
            own = slice(int(bags[left]), int(bags[right]))
            values[row[own], channel[own] - left] += shares[own] / 2
            total[:, left:right] += embedding_bag(row, values, bags[:-1], mode="sum", per_sample_weights=shares)
    return total


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
