"""Ranks: the processes of a run, and what they exchange; this is the one process of a run that has no others."""

from collections.abc import Sequence
from typing import Any

from attrs import define, frozen
from torch import Tensor


@frozen(eq=False)
class Transfer:
    """A tensor that one rank has and another needs.

    Attributes:
        source: the rank that has it.
        target: the rank that needs it.
        like: shape and dtype, on the meta device where this rank has no such tensor, and the tensor where it has.
    """

    source: int
    target: int
    like: Tensor


@define(eq=False)
class Ranks:
    """The ranks of a run.  Every method is called by all of them, in the same order.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes, and speaks to the user."""
        return self.rank == 0

    def gather(self, what: str, value: Any) -> list[Any]:
        """The values of all ranks, in their order.

        Args:
            what: they are, in words; ranks that are at different places say so.
            value: of this rank; it may hold tensors.

        Raises:
            RankError: a rank failed, ended, or is at another place.
        """
        return [value]

    def broadcast(self, what: str, value: Any, *, source: int = 0) -> Any:
        """The value of one rank; that of the others is not looked at."""
        return value

    def transfer(self, what: str, transfers: Sequence[Transfer]) -> list[Tensor | None]:
        """Move tensors between ranks; all ranks name the same transfers.

        Returns:
            For each what arrived here; None for those to other ranks.
        """
        return [None] * len(transfers)

    def fail(self, error: BaseException) -> None:
        """Let the other ranks know that this one fails."""


ALONE = Ranks()
"""A run of one process."""
