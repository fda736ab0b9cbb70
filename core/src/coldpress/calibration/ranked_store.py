"""The statistics of a stage of which each rank runs some batches: the same values, bit for bit, as of one process.

a round    every rank runs its batches                          their shapes are gathered, and what they add where
           all ranks follow which layers share an input         a statistic merges batches
           tokens go where they are needed                      to the rank that keeps a statistic, or a chunk
           chunks are added up, each by one rank                what they add goes to the rank that keeps the sum
           values are updated in the order of batches
the end    values go to all ranks
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from attrs import define, field, frozen

from coldpress.calibration.ranked_tokens import Chunk, Piece, Slot, Slots, moved, shapes_of
from coldpress.calibration.store import Source, StatisticStore, beside, flat
from coldpress.calibration.tap import BatchInputs
from coldpress.distributed import WHOLE, Share
from coldpress.statistic import ChunkedStatistic, Statistic, Tokens

Seen = tuple[BatchInputs, BatchInputs | None]
"""What was seen in a batch, and in the original model where the sweep shows that."""


@define(eq=False)
class Cell:
    """A statistic of a source while batches run.

    Attributes:
        statistic: which.
        keeper: the rank that has the value; None where all have it.
        value: what was seen so far.
        cut: tokens in the chunks that were cut.
        pending: tokens that are in no chunk yet.
    """

    statistic: Statistic
    keeper: int | None
    value: Any = None
    cut: int = 0
    pending: tuple[Piece, ...] = ()


@frozen(eq=False)
class _Contribution:
    """What a rank has of one of its batches.

    Attributes:
        seen: with tokens that have shapes and no numbers.
        original: the same of the original model.
        added: key of a tensor and number of a statistic to what it adds.
    """

    seen: BatchInputs
    original: BatchInputs | None
    added: Mapping[tuple[int, int], Any]


@define(eq=False)
class _Round:
    """What is done with the batches of a round, in their order, after tokens have moved.

    Attributes:
        slots: of all tokens.
        chunks: that were cut.
        updates: of values.
    """

    slots: list[Slot] = field(factory=list)
    chunks: list[Chunk] = field(factory=list)
    updates: list[Callable[[], None]] = field(factory=list)


@define(eq=False)
class RankedStore(StatisticStore):
    """The statistics of one stage, under several ranks.

    Attributes:
        share: which batches each rank runs.
        count: of batches.
    """

    share: Share = WHOLE
    count: int = 0
    _load: dict[int, float] = field(factory=dict)  # what each rank keeps, in this stage
    _round: _Round = field(factory=_Round)

    def seeing(self, found: Iterator[Seen], shown: Collection[str]) -> Iterator[BatchInputs]:
        """Take in the batches of all ranks, round by round, and hand each on, in order."""
        self._load = {}
        own = (pair for pair in found if self.share.owns(pair[0].index))
        head = next(own, None)
        for indices in self.share.rounds(self.count):
            mine = []
            while head is not None and head[0].index in indices:
                mine.append(head)
                head = next(own, None)
            yield from self._see_round(mine, frozenset(shown))

    def finish(self) -> None:
        """Add up what is left of chunks, and bring the value of every statistic to all ranks."""
        cells = [cell for source in self._sources for _, cell in source.values]
        self._round = _Round()
        for cell in cells:
            if cell.pending:
                self._cut(cell, sum(len(piece) for piece in cell.pending))
        self._settle("the end of a sweep")
        self._sources = [
            Source(source.layers, tuple((one, self._whole(cell)) for one, cell in source.values))
            for source in self._sources
        ]

    def _whole(self, cell: Cell) -> Any:
        if cell.keeper is None:
            return cell.statistic.finish(cell.value)
        value = cell.statistic.finish(cell.value) if cell.keeper == self.share.ranks.rank else None
        return self.share.ranks.broadcast(f"{cell.statistic!r}", value, source=cell.keeper)

    def _see_round(self, mine: Sequence[Seen], shown: frozenset[str]) -> Iterator[BatchInputs]:
        ranks, self._round = self.share.ranks, _Round()
        own = [
            _Contribution(shapes_of(seen), None if other is None else shapes_of(other), self._added(seen))
            for seen, other in mine
        ]
        what = f"the inputs of {', '.join(dict.fromkeys(ask.layer.name for ask in self._wanted)) or 'a stage'}"
        gathered = ranks.gather(what, own)
        here = {seen.index: (seen, other) for seen, other in mine}
        batches = sorted(
            ((rank, one) for rank, found in enumerate(gathered) for one in found), key=lambda pair: pair[1].seen.index
        )
        handed = []
        for rank, one in batches:
            seen, other = here.get(one.seen.index, (one.seen, one.original))
            slots = Slots(rank, seen.tokens)
            others = None if other is None else Slots(rank, other.tokens)
            self._round.slots += [*slots, *(others or ())]
            for name in shown.intersection(seen.calls):
                slots.need(seen.calls[name], range(ranks.size))
            self._plan(seen, slots, other, others, one.added)
            handed.append((seen, slots))
        self._settle(what)
        for seen, slots in handed:
            yield BatchInputs(seen.index, seen.calls, slots.here(), seen.places)

    def _merged_kinds(self) -> list[Statistic]:
        """The statistics that merge batches."""
        return list(dict.fromkeys(ask.statistic for ask in self._wanted if _merges(ask.statistic)))

    def _added(self, seen: BatchInputs) -> dict[tuple[int, int], Any]:
        """What the tensors of a batch add to the statistics that merge batches."""
        kinds, found = self._merged_kinds(), dict[tuple[int, int], Any]()
        for ask in self._wanted:
            for key in seen.calls.get(ask.layer.name, ()) if ask.statistic in kinds else ():
                place = key, kinds.index(ask.statistic)
                if place not in found:
                    found[place] = ask.statistic.update(None, flat(ask.statistic, seen.tokens[key]))
        return found

    def _plan(
        self,
        seen: BatchInputs,
        slots: Slots,
        original: BatchInputs | None,
        others: Slots | None,
        added: Mapping[tuple[int, int], Any],
    ) -> None:
        """Follow which layers share an input in a batch, and note what is to be updated with what."""
        self._sources, kinds = self._parted(seen), self._merged_kinds()
        for source in self._sources:
            keys = seen.calls.get(source.layers[0], ())
            originals = beside(
                source, [seen.tokens[key] for key in keys], None if original is None else original.inputs()
            )
            for number, (key, x) in enumerate(zip(keys, originals, strict=True)):
                which = Tokens(seen.index, number, seen.places.get(key))
                for one, cell in source.values:
                    if _merges(one):
                        self._round.updates.append(partial(_merge, cell, added[key, kinds.index(one)]))
                    elif _is_chunked(one):
                        self._gather_chunks(cell, slots[key])
                    else:
                        slot, other = slots[key], slots[key] if others is None else others.of(x) or slots[key]
                        self._update_where_kept(cell, source.layers, slot, other, which)

    def _update_where_kept(self, cell: Cell, names: tuple[str, ...], slot: Slot, other: Slot, which: Tokens) -> None:
        slot.needed.add(cell.keeper or 0)
        if cell.statistic.needs_original_inputs:
            other.needed.add(cell.keeper or 0)
        if cell.keeper == self.share.ranks.rank:
            self._round.updates.append(partial(self._update, cell, names, slot, other, which))

    def _update(self, cell: Cell, names: tuple[str, ...], slot: Slot, other: Slot, which: Tokens) -> None:
        source = Source(names, ((cell.statistic, cell.value),))
        beside_it = other.x if cell.statistic.needs_original_inputs else slot.x
        ((_, cell.value),) = source.seeing(slot.x, beside_it, partial(self._weight, names, slot.x, which)).values

    def _gather_chunks(self, cell: Cell, slot: Slot) -> None:
        """Add tokens to those that are in no chunk, and cut what is whole."""
        cell.pending = (*cell.pending, Piece(slot, 0, len(slot.x)))
        size, left = cell.statistic.chunk_size(), sum(len(piece) for piece in cell.pending)  # type: ignore[attr-defined]
        while left >= size:
            self._cut(cell, size)
            left -= size

    def _cut(self, cell: Cell, size: int) -> None:
        """Cut a chunk of pending tokens, which is added up where most of it is."""
        inside, rest, left = list[Piece](), list[Piece](), size
        for piece in cell.pending:
            first, second = piece.parted(left)
            left -= len(first)
            inside += [first] if len(first) else []
            rest += [second] if len(second) else []
        assert isinstance(cell.statistic, ChunkedStatistic)
        chunk = Chunk(cell.statistic, tuple(inside), cell.cut, keeper=cell.keeper or 0)
        cell.pending, cell.cut = tuple(rest), cell.cut + size
        self._round.chunks.append(chunk)
        if cell.keeper == self.share.ranks.rank:
            self._round.updates.append(partial(_add, cell, chunk))

    def _settle(self, what: str) -> None:
        """Move tokens, add up chunks, move what they add, and update values in the order that was planned."""
        ranks = self.share.ranks
        moved(ranks, what, self._round.slots, self._round.chunks)
        for update in self._round.updates:
            update()

    def _fresh(self, names: tuple[str, ...], seen: BatchInputs) -> Source:
        """A source whose statistics are kept, each, by the rank that has the least to keep."""
        width = seen.tokens[seen.calls[names[0]][0]][:1].numel()
        return Source(names, tuple((one, Cell(one, self._keeper(one, width))) for one in self._statistics(names)))

    def _keeper(self, statistic: Statistic, width: int) -> int | None:
        if _merges(statistic):
            return None
        rank = min(range(self.share.ranks.size), key=lambda one: self._load.get(one, 0.0))
        self._load[rank] = self._load.get(rank, 0.0) + float(width) ** 2
        return rank

    def _split(self, source: Source, groups: Sequence[tuple[str, ...]]) -> list[Source]:
        """As of one process; what was seen so far is copied when it is there."""
        parts = super()._split(source, groups)
        if len(groups) == 1 or not any(isinstance(cell, Cell) for _, cell in source.values):
            return parts
        return [Source(one.layers, tuple((kind, self._copied(cell)) for kind, cell in one.values)) for one in parts]

    def _copied(self, cell: Cell) -> Cell:
        copy = Cell(cell.statistic, cell.keeper, None, cell.cut, cell.pending)
        self._round.updates.append(partial(_copy, cell, copy))
        return copy


def _merges(statistic: Statistic) -> bool:
    return statistic.merges_batches() and statistic.weighted_by() is None and not statistic.needs_original_inputs


def _is_chunked(statistic: Statistic) -> bool:
    return isinstance(statistic, ChunkedStatistic) and statistic.weighted_by() is None


def _merge(cell: Cell, added: Any) -> None:
    cell.value = added if cell.value is None else cell.statistic.merge(cell.value, added)


def _add(cell: Cell, chunk: Chunk) -> None:
    assert isinstance(cell.statistic, ChunkedStatistic)
    assert chunk.addend is not None
    cell.value = cell.statistic.add(cell.value, chunk.addend, len(chunk))


def _copy(cell: Cell, copy: Cell) -> None:
    copy.value = cell.value
