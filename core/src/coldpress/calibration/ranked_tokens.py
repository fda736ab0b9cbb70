"""Tokens of several ranks: where they are, where they are needed, and the chunks that are cut of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor

from coldpress.calibration.store import flat
from coldpress.calibration.tap import BatchInputs
from coldpress.distributed.ranks import Ranks, Transfer
from coldpress.statistic import ChunkedStatistic


@define(eq=False)
class Slot:
    """A tensor of tokens.

    Attributes:
        rank: that has it.
        x: the tokens, on the meta device where they are not here.
        needed: ranks that need it, itself maybe among them.
    """

    rank: int
    x: Tensor
    needed: set[int] = field(factory=set)


class Slots:
    """The tensors of a batch by key.

    Args:
        rank: that has them.
        tokens: by key.
    """

    def __init__(self, rank: int, tokens: Mapping[int, Tensor]) -> None:
        self._slots = {key: Slot(rank, x) for key, x in tokens.items()}
        self._by_tensor = {id(x): self._slots[key] for key, x in tokens.items()}

    def __getitem__(self, key: int) -> Slot:
        return self._slots[key]

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots.values())

    def of(self, x: Tensor) -> Slot | None:
        """The slot of a tensor."""
        return self._by_tensor.get(id(x))

    def need(self, keys: Iterable[int], ranks: Iterable[int]) -> None:
        """Say that ranks need some of them."""
        ranks = set(ranks)
        for key in keys:
            self._slots[key].needed |= ranks

    def here(self) -> dict[int, Tensor]:
        """By key, as they are by now."""
        return {key: slot.x for key, slot in self._slots.items()}


@frozen(eq=False)
class Piece:
    """Some tokens of a tensor.

    Attributes:
        slot: the tensor.
        start: the first of them.
        stop: after the last.
    """

    slot: Slot
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def parted(self, count: int) -> "tuple[Piece, Piece]":
        """The first tokens, at most so many, and the rest."""
        middle = min(self.start + count, self.stop)
        return Piece(self.slot, self.start, middle), Piece(self.slot, middle, self.stop)

    def tokens(self, statistic: ChunkedStatistic) -> Tensor:
        """The tokens as the statistic sees them, [t, I]."""
        return flat(statistic, self.slot.x)[self.start : self.stop]


@define(eq=False)
class Chunk:
    """Tokens that are added up at once.

    Attributes:
        statistic: that adds them up.
        pieces: that they are.
        seen: tokens before it.
        keeper: the rank that keeps the sum.
        addend: what it adds, where that is known.
    """

    statistic: ChunkedStatistic
    pieces: tuple[Piece, ...]
    seen: int
    keeper: int = field(kw_only=True)
    addend: Tensor | None = None

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    def owner(self) -> int:
        """The rank that adds it up: which has most of it."""
        held: dict[int, int] = {}
        for piece in self.pieces:
            held[piece.slot.rank] = held.get(piece.slot.rank, 0) + len(piece)
        return max(sorted(held), key=lambda rank: held[rank])

    def width(self) -> int:
        """Channels."""
        return self.pieces[0].tokens(self.statistic).shape[1]


def shapes_of(seen: BatchInputs) -> BatchInputs:
    """What was seen of a batch without the numbers."""
    return evolve(seen, tokens={key: x.to("meta") for key, x in seen.tokens.items()})


def moved(ranks: Ranks, what: str, slots: Sequence[Slot], chunks: Sequence[Chunk]) -> None:
    """Bring tokens to where they are needed and what chunks add to where their sums are kept.

    Args:
        ranks: of the run.
        what: is exchanged, in words.
        slots: whose tensors are needed; where they are, they are there afterwards.
        chunks: that get their addends, where they are needed.
    """
    whole = [(slot, rank) for slot in slots for rank in sorted(slot.needed - {slot.rank})]
    pieces = [(chunk, piece) for chunk in chunks for piece in chunk.pieces if piece.slot.rank != chunk.owner()]
    transfers = [Transfer(slot.rank, rank, slot.x) for slot, rank in whole]
    transfers += [Transfer(one.slot.rank, chunk.owner(), one.tokens(chunk.statistic)) for chunk, one in pieces]
    arrived = ranks.transfer(what, transfers) if transfers else []
    for (slot, rank), x in zip(whole, arrived, strict=False):
        if rank == ranks.rank and x is not None:
            slot.x = x
    extra = {id(piece): x for (_, piece), x in zip(pieces, arrived[len(whole) :], strict=True) if x is not None}
    for chunk in chunks:
        if chunk.owner() == ranks.rank:
            chunk.addend = _added_up(chunk, extra)
    _bring_addends(ranks, what, chunks)


def _added_up(chunk: Chunk, extra: Mapping[int, Tensor]) -> Tensor:
    found = [extra[id(piece)] if id(piece) in extra else piece.tokens(chunk.statistic) for piece in chunk.pieces]
    return chunk.statistic.addend(torch.cat(found) if len(found) > 1 else found[0], chunk.seen)


def _bring_addends(ranks: Ranks, what: str, chunks: Sequence[Chunk]) -> None:
    going = [chunk for chunk in chunks if chunk.owner() != chunk.keeper]
    like = [
        torch.empty(chunk.width(), chunk.width(), device="meta") if chunk.addend is None else chunk.addend
        for chunk in going
    ]
    transfers = [Transfer(chunk.owner(), chunk.keeper, x) for chunk, x in zip(going, like, strict=True)]
    for chunk, x in zip(going, ranks.transfer(what, transfers) if transfers else [], strict=True):
        if chunk.keeper == ranks.rank:
            chunk.addend = x
