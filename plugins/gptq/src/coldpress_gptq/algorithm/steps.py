"""The inner loop of the solver: a few columns, one after the other; in torch, or in one launch of Triton's kernel.

Letters are those of `solver.py`.
"""

from importlib.util import find_spec
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from coldpress.plugin import NumberFormat


class InnerLoop(Protocol):
    """Rounds a few columns, one after the other."""

    def round(
        self, here: slice, targets: Tensor, errors: Tensor, codes: Tensor, owed: Tensor, keep: Tensor | None
    ) -> None:
        """Round columns; those of earlier blocks are in the targets already.

        Args:
            here: which columns they are, in the order in which they are rounded.
            targets: t without the errors of these columns, [B, P * O]; becomes t.
            errors: the weights, [B, P * O]; becomes w - q.
            codes: is filled, [B, P * O].
            owed: F of each problem, transposed, [P, B, B]; zero where an error comes later, so that what is not an
                error yet counts for 0.
            keep: 0 where a weight stays zero, 1 elsewhere, [B, P * O]; None for 1 everywhere.
        """


def inner_loop(scales: Tensor, points: Tensor | None, grid: NumberFormat, groups: Tensor) -> InnerLoop:
    """One launch for a few columns where there is Triton, `Steps` elsewhere.

    Args:
        scales: [G, P * O] float32.
        points: zero points, [G, P * O] float32; None where all of them are zero.
        grid: of the codes.
        groups: row of `scales` of each column of each problem, in the order in which they are rounded, [P, I] int64.
    """
    if scales.is_cuda and find_spec("triton") is not None:
        from coldpress_gptq.algorithm.kernel import FusedSteps, supports

        if supports(grid):
            return FusedSteps(scales, points, grid, groups)
    return Steps(scales, points, grid, groups)


class Steps(NamedTuple):
    """The inner loop in torch, with no memory taken and no word from the device; see `inner_loop`."""

    scales: Tensor
    points: Tensor | None
    grid: NumberFormat
    groups: Tensor

    def round(
        self, here: slice, targets: Tensor, errors: Tensor, codes: Tensor, owed: Tensor, keep: Tensor | None
    ) -> None:
        """As `InnerLoop` says."""
        scales = self._of(here, self.scales)
        points = self._of(here, self.points) if self.points is not None else None
        rounded = torch.empty_like(targets[0])  # [P * O]
        rows = zip(targets.unbind(), errors.unbind(), codes.unbind(), owed.unbind(1), scales, strict=True)
        for j, (target, error, code, shares, scale) in enumerate(rows):
            if j:
                _pay(target, errors, shares)
            torch.div(target, scale, out=code)
            if points is not None:
                code.add_(points[j])
            self.grid.round_(code)
            if keep is not None:
                code.mul_(keep[j])
                if points is not None:
                    code.addcmul_(points[j], 1 - keep[j])
            if points is None:
                torch.mul(code, scale, out=rounded)
            else:
                torch.sub(code, points[j], out=rounded).mul_(scale)
            error.sub_(rounded)

    def _of(self, here: slice, scales: Tensor) -> list[Tensor]:
        """The scales, or zero points, of some columns, [P * O] each."""
        problems, _ = self.groups.shape
        if problems == 1:
            return list(scales.index_select(0, self.groups[0, here]).unbind())
        several = scales.reshape(len(scales), problems, -1)  # [G, P, O]
        places = torch.arange(problems, device=scales.device)
        return list(several[self.groups[:, here].t(), places].flatten(1).unbind())


def _pay(target: Tensor, errors: Tensor, shares: Tensor) -> None:
    """Add to a column, [P * O], what it is owed of the errors of a block, [B, P * O], for shares of [P, B]."""
    problems, columns = shares.shape
    if problems == 1:  # half the time of a batch of one, for every column
        target.addmv_(errors.t(), shares[0])
    else:
        apart = errors.view(columns, problems, -1).transpose(0, 1)  # [P, B, O]
        target.view(problems, 1, -1).baddbmm_(shares[:, None], apart)
