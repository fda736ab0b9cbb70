"""Share: which calibration batches a rank runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any, TypeVar

from attrs import field, frozen

from coldpress.distributed.ranks import ALONE, Ranks

T = TypeVar("T", bound=Mapping[str, Any])
Item = TypeVar("Item")
Solved = TypeVar("Solved")


@frozen(eq=False)
class Share:
    """Runs of batches, dealt to the ranks in turn.

        run_length 2, 3 ranks      batches 0 1 | 2 3 | 4 5 | 6 7 | 8
                                   rank     0     1     2     0    1
                                   round    ----- 0 -----    --- 1 ---

    Attributes:
        ranks: of the run.
        run_length: batches side by side that one rank runs.
    """

    ranks: Ranks = ALONE
    run_length: int = field(default=1)

    @classmethod
    def of(cls, ranks: Ranks, tokens: Sequence[int], *, chunk: int = 4096) -> "Share":
        """The share of each rank: as even as can be, with runs of up to `chunk` tokens, which stay together then.

        Args:
            ranks: of the run.
            tokens: of each batch.
            chunk: tokens that Gram matrices are summed by.
        """
        count, size = len(tokens), ranks.size
        if size == 1 or not count:
            return cls(ranks)
        longest = max(1, min(count, round(chunk / max(1, sum(tokens) / count))))
        return cls(ranks, min(range(longest, 0, -1), key=lambda run: _most(count, run, size)))

    def owner(self, index: int) -> int:
        """The rank that runs a batch."""
        return index // self.run_length % self.ranks.size

    def owns(self, index: int) -> bool:
        """Whether this rank runs a batch."""
        return self.owner(index) == self.ranks.rank

    def batches(self, batches: Sequence[T]) -> Iterator[tuple[int, T]]:
        """The batches that this rank runs, each with its index.

        A rank that there are none for runs the first one too, so that it goes the same way; what it finds is not used.
        """
        own = [index for index in range(len(batches)) if self.owns(index)]
        yield from ((index, batches[index]) for index in own or range(min(1, len(batches))))

    def rounds(self, count: int) -> Iterator[range]:
        """The indices of `count` batches, round by round: one run of each rank."""
        length = self.run_length * self.ranks.size
        yield from (range(start, min(start + length, count)) for start in range(0, count, length))

    def divided(
        self, what: str, items: Sequence[Item], solve: Callable[[Item], Solved], *, costs: Sequence[float]
    ) -> Iterator[tuple[Item, Solved, float]]:
        """Solve independent problems, each on one rank, the costliest first to the rank that has least to do.

        Args:
            what: is solved, in words.
            items: the problems; the same ones on all ranks.
            solve: reads and changes nothing that another rank must know of, and exchanges nothing.
            costs: of each, in any unit.

        Yields:
            Each problem, in order, with its solution, the same bits on all ranks, and the seconds that it took.
        """
        owners = dealt(costs, self.ranks.size)
        if self.ranks.size == 1:
            yield from ((item, *_timed(solve, item)) for item in items)
            return
        own = [_timed(solve, item) for item, owner in zip(items, owners, strict=True) if owner == self.ranks.rank]
        found = [
            iter(self.ranks.broadcast(f"{what}, solved by rank {rank}", own, source=rank) if rank in owners else [])
            for rank in range(self.ranks.size)
        ]
        for item, owner in zip(items, owners, strict=True):
            yield item, *next(found[owner])

    def total(self, what: str, number: int) -> int:
        """The sum of a number over all ranks."""
        return sum(self.ranks.gather(what, number))


def dealt(costs: Sequence[float], size: int) -> list[int]:
    """The rank of each problem."""
    load, owners = [0.0] * size, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda one: -costs[one]):
        owners[index] = load.index(min(load))
        load[owners[index]] += costs[index]
    return owners


def _timed(solve: Callable[[Item], Solved], item: Item) -> tuple[Solved, float]:
    start = perf_counter()
    return solve(item), perf_counter() - start


def _most(count: int, run: int, size: int) -> int:
    """Batches of the rank that has most."""
    return sum(min(run, count - start) for start in range(0, count, run * size))


WHOLE = Share()
"""All batches, of a run of one process."""
