"""Attention heads by experiment: how many channels of a value projection a rotation may mix, undone in the output's.

    v: rows of each head W_v <- R^T W_v, b_v <- b_v R        o: the columns that read a head W_o <- W_o R

A pair of linear layers has heads if a random rotation of two channels at a time keeps the block's function, and that of
the rows alone does not; the head's size is the largest that does.  Between gate and down, where channels are multiplied
one by one, none does, and of an expert that no token of the probing input chose nothing is known.
"""

from collections.abc import Iterator

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from coldpress.dataflow.certificate import TOLERANCE, deviation
from coldpress.dataflow.pair import Pair
from coldpress.dataflow.probe import Dataflow
from coldpress.dataflow.rotate import RotationSite, rotate
from coldpress.dataflow.workbench import Workbench
from coldpress.errors import ModelError
from coldpress.numerics import Rotation, random_orthogonal


@frozen(eq=False)
class Heads:
    """A value projection and what reads it.

    Attributes:
        pair: the two.
        head_dim: channels of a head.
        writers: rows of the value projection, and its bias.
        readers: columns of what reads it.
    """

    pair: Pair = field(repr=False)
    head_dim: int
    writers: tuple[RotationSite, ...]
    readers: tuple[RotationSite, ...]

    def rotations(self, block: Tensor) -> Iterator[tuple[RotationSite, Rotation]]:
        """What rotates every head by a matrix, [head_dim, head_dim]."""
        for site, width in self._widths():
            yield site, Rotation(width, self.head_dim, block=block)

    def within(self, prefix: str) -> "Heads":
        """The same, named from the module that holds the block as `prefix`."""
        return evolve(
            self,
            pair=self.pair.within(prefix),
            writers=tuple(site.within(prefix) for site in self.writers),
            readers=tuple(site.within(prefix) for site in self.readers),
        )

    def _widths(self) -> Iterator[tuple[RotationSite, int]]:
        for site in self.writers:
            yield site, len(self.pair.rows)
        for site, member in zip(self.readers, self.pair.members, strict=True):
            yield site, len(member.channels)


def find_heads(bench: Workbench, flow: Dataflow) -> list[Heads]:
    """The value projections of a block, and what reads them.

    Args:
        bench: with a copy of the block, which is left as it was.
        flow: what probing found of its pairs.
    """
    found = []
    for pair in flow.pairs:
        if pair.kind == "linear" and pair.degree == 1 and pair.num_experts is None:
            sizes = [n for n in range(2, len(pair.rows) + 1) if len(pair.rows) % n == 0 and _aligned(pair, n)]
            if sizes and _matters(bench, _heads(pair, sizes[0])) and _holds(bench, _heads(pair, sizes[0])):
                best = next(n for n in reversed(sizes) if _holds(bench, _heads(pair, n)))
                found.append(_heads(pair, best))
    return found


def _heads(pair: Pair, size: int) -> Heads:
    rows = None if pair.whole else pair.rows
    writers = tuple(RotationSite(site.parameter, site.dim, rows) for site in pair.sites)
    readers = tuple(RotationSite(member.site.parameter, member.site.dim) for member in pair.members)
    return Heads(pair, size, writers, readers)


def _aligned(pair: Pair, size: int) -> bool:
    """Whether each `size` input channels of every reader are those of one head, in their order."""
    for member in pair.members:
        if len(member.channels) % size or bool((member.channels < 0).any()):
            return False
        blocks = member.channels.reshape(-1, size)  # [heads, size]
        steps = torch.arange(size)
        if not bool((blocks == blocks[:, :1] + steps).all()) or bool((blocks[:, 0] % size).any()):
            return False
    return True


def _holds(bench: Workbench, heads: Heads) -> bool:
    """Whether a random rotation of the heads keeps the function of the block."""
    return _deviation(bench, heads, {site.parameter for site in (*heads.writers, *heads.readers)}) <= TOLERANCE


def _matters(bench: Workbench, heads: Heads) -> bool:
    """Whether the function of the block is another if the rows are rotated and nothing that reads them is."""
    return _deviation(bench, heads, {site.parameter for site in heads.writers}) > TOLERANCE


def _deviation(bench: Workbench, heads: Heads, names: set[str]) -> float:
    """How far the outputs are from what they were, with a random rotation of these parameters of the heads."""
    block = random_orthogonal(heads.head_dim, bench.generator)
    saved = {name: bench.block.get_parameter(name).detach().clone() for name in names}
    rotate(bench.block, (), [(site, turn) for site, turn in heads.rotations(block) if site.parameter in names])
    try:
        return deviation(bench.before.outputs, bench.run().outputs)
    except ModelError:
        return float("inf")
    finally:
        with torch.no_grad():
            for name, value in saved.items():
                bench.block.get_parameter(name).copy_(value)
