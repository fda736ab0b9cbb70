"""The inner loop of GPTQ as a Triton kernel: the columns of a small block in one launch, for GPUs.

The loop in torch, `Steps` of the algorithm, is its oracle: codes differ at most where a target lies half way between
two numbers of the grid, because sums are added up in another order.
On an H100 it is eight to sixteen times as fast as that loop (benchmarks/results/gpu.md); a CPU proves it in Triton's
interpreter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from coldpress.plugin import NumberFormat

_ROWS = 64  # of the weight in one program: small, so that a small layer fills the device too
_HALF_WAY = tl.constexpr(1.5 * 2**23)  # plus and minus this is rounding to the nearest integer, ties to even

_STEPS = {"float8": (-6, 3), "float6": (0, 3), "float4": (0, 1)} | {f"int{bits}": (7, 7) for bits in range(2, 9)}
"""Number format to its smallest normal exponent and its bits of mantissa: between 2^e and 2^(e+1) lie 2^bits numbers,
below the smallest exponent they are as far apart as there.  Integers are what has no exponent up to 2^7."""


class FusedSteps:
    """The inner loop in one launch a call.

    Args:
        scales: [G, P * O] float32.
        points: zero points, [G, P * O] float32; None where all of them are zero.
        grid: of the codes, one that `supports` knows.
        groups: row of `scales` of each column of each problem, [P, I] int64.
    """

    def __init__(self, scales: Tensor, points: Tensor | None, grid: NumberFormat, groups: Tensor) -> None:
        self.scales = scales.contiguous()
        self.points = None if points is None else points.contiguous()
        self.grid = grid
        self.groups = groups.to(scales.device, torch.int32)

    def round(
        self, here: slice, targets: Tensor, errors: Tensor, codes: Tensor, owed: Tensor, keep: Tensor | None
    ) -> None:
        """As `InnerLoop` of the algorithm says; every matrix is contiguous."""
        columns, problems = len(targets), len(owed)
        rows = targets.shape[1] // problems
        least, mantissa = _STEPS[self.grid.name]
        _round_columns[(triton.cdiv(rows, _ROWS), problems)](
            targets,
            errors,
            codes,
            owed,
            self.scales,
            self.scales if self.points is None else self.points,
            targets if keep is None else keep,
            self.groups[:, here].contiguous(),
            rows,
            columns,
            float(self.grid.minimum),
            float(self.grid.maximum),
            LEAST=least,
            MANTISSA=mantissa,
            HAS_POINTS=self.points is not None,
            HAS_KEEP=keep is not None,
            COLUMNS=triton.next_power_of_2(columns),
            ROWS=_ROWS,
        )


def supports(grid: NumberFormat) -> bool:
    """Whether the kernel knows how to round to these numbers; those of plugins it does not."""
    return grid.name in _STEPS


@triton.jit
def _round_columns(
    targets,
    errors,
    codes,
    owed,
    scales,
    points,
    keep,
    groups,
    rows,
    columns,
    minimum,
    maximum,
    LEAST: tl.constexpr,
    MANTISSA: tl.constexpr,
    HAS_POINTS: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Each program takes some rows of a problem's weight through all columns of the block."""
    problem, every = tl.program_id(1), tl.num_programs(1) * rows
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = row < rows
    row += problem * rows
    groups += problem * columns
    owed += problem * columns * columns
    past = tl.zeros((COLUMNS, ROWS), tl.float32)  # errors of the columns that are rounded; 0 for those to come
    for j in range(columns):
        at, scale_at = j * every + row, tl.load(groups + j) * every + row
        share = tl.load(owed + j * columns + column, mask=column < columns, other=0.0)
        target = tl.load(targets + at, mask=inside, other=0.0) + tl.sum(past * share[:, None], axis=0)
        scale = tl.load(scales + scale_at, mask=inside, other=1.0)
        point = tl.load(points + scale_at, mask=inside, other=0.0) if HAS_POINTS else tl.zeros((ROWS,), tl.float32)
        code = _rounded(tl.div_rn(target, scale) + point, minimum, maximum, LEAST, MANTISSA)
        if HAS_KEEP:
            kept = tl.load(keep + at, mask=inside, other=0.0)
            code = code * kept + point * (1 - kept)
        error = tl.load(errors + at, mask=inside, other=0.0) - (code - point) * scale
        past = tl.where(column[:, None] == j, error[None, :], past)
        tl.store(targets + at, target, mask=inside)
        tl.store(errors + at, error, mask=inside)
        tl.store(codes + at, code, mask=inside)


@triton.jit
def _rounded(x, minimum, maximum, LEAST: tl.constexpr, MANTISSA: tl.constexpr):
    """The nearest number of the grid, ties to even; the step at 2^e is 2^(e - MANTISSA), and the same below LEAST."""
    x = tl.minimum(tl.maximum(x, minimum), maximum)
    exponent = ((x.to(tl.int32, bitcast=True) >> 23) & 255) - 127
    power = tl.maximum(exponent, LEAST) - MANTISSA
    step = ((power + 127) << 23).to(tl.float32, bitcast=True)
    inverse = ((127 - power) << 23).to(tl.float32, bitcast=True)
    return ((x * inverse + _HALF_WAY) - _HALF_WAY) * step
