"""Statistics to try the kit on: a good one, and several that break one promise."""

from typing import ClassVar

import torch
from attrs import field, frozen

from coldpress.calibration.statistics import Gram
from coldpress.plugin import RESCALE, Statistic


@frozen(kw_only=True)
class GoodStatistic(Statistic):
    """The largest magnitude of each channel.

    Attributes:
        factor: to multiply it with.
    """

    supports: ClassVar[frozenset[str]] = frozenset({RESCALE})

    factor: float = field(default=1.0)

    def update(self, value, x):
        seen = x.abs().amax(0).float()
        return seen if value is None else GoodStatistic.merge(self, value, seen)

    def merge(self, a, b):
        return torch.maximum(a, b)

    def rescale(self, value, scale):
        return value / scale.abs()


@frozen(kw_only=True, eq=False)
class NeverEqual(GoodStatistic):
    """Is collected once for everybody who asks."""


@frozen(kw_only=True)
class DividesByTheRest(GoodStatistic):
    """A variance, of one token too."""

    def update(self, value, x):
        return super().update(value, x) * ((len(x) - 1) / torch.tensor(len(x) - 1.0))


@frozen(kw_only=True)
class RollsDice(GoodStatistic):
    """Samples."""

    def finish(self, value):
        return value * (1 - 0.004 * torch.rand(()))


@frozen(kw_only=True)
class WritesIntoValue(GoodStatistic):
    """Saves memory in the wrong place."""

    def update(self, value, x):
        seen = x.abs().amax(0).float()
        return seen if value is None else value.copy_(torch.maximum(value, seen))


@frozen(kw_only=True)
class WritesIntoTokens(GoodStatistic):
    """Takes the tokens for its own."""

    def update(self, value, x):
        return super().update(value, x.abs_())


@frozen(kw_only=True)
class LastBatchOnly(GoodStatistic):
    """Forgets what came before."""

    def update(self, value, x):
        return super().update(None, x)


@frozen(kw_only=True)
class FinishesAgain(GoodStatistic):
    """Halves whenever it is asked."""

    def finish(self, value):
        return value / 2


@frozen(kw_only=True)
class FirstWins(GoodStatistic):
    """Merges as if the second had not been."""

    def merge(self, a, b):
        return a


@frozen(kw_only=True)
class CarriesTheWrongWay(GoodStatistic):
    """Multiplies where it should divide."""

    def rescale(self, value, scale):
        return value * scale.abs()


@frozen(kw_only=True)
class CarriesAnything(GoodStatistic):
    """Says that it follows what nobody does."""

    supports: ClassVar[frozenset[str]] = frozenset({"shift"})


@frozen(kw_only=True)
class MergesInOtherBits(GoodStatistic):
    """Rounds when it merges, and says that it does what update does."""

    def merges_batches(self):
        return True

    def merge(self, a, b):
        return torch.maximum(a, b) * (1 + 2**-20)


@frozen(kw_only=True)
class AddsChunksTwice(Gram):
    """Adds a chunk to the sum twice, where ranks are several."""

    chunk: int = 16

    def add(self, value, addend, tokens):
        return super().add(value, 2 * addend, tokens)


@frozen(kw_only=True)
class GoodComparison(Statistic):
    """The sum of what each channel has changed."""

    supports: ClassVar[frozenset[str]] = frozenset({RESCALE})
    needs_original_inputs: ClassVar[bool] = True

    def update_with_original(self, value, x, original):
        change = (x.float() - original.float()).sum(0)
        return change if value is None else value + change

    def merge(self, a, b):
        return a + b

    def rescale(self, value, scale):
        return value / scale


@frozen(kw_only=True)
class ComparesWithTheFirst(GoodComparison):
    """Takes the original's first token for all."""

    def update_with_original(self, value, x, original):
        return super().update_with_original(value, x, original[:1].expand_as(original))


@frozen(kw_only=True)
class WritesIntoTheOriginal(GoodComparison):
    """Takes the original's tokens for its own."""

    def update_with_original(self, value, x, original):
        return super().update_with_original(value, x, original.neg_())


GOOD: tuple[type, ...] = (GoodStatistic, GoodComparison)

# class -> the one check that it fails
BAD: dict[type, str] = {
    NeverEqual: "equal_settings_are_one",
    DividesByTheRest: "dtypes",
    RollsDice: "deterministic",
    WritesIntoValue: "changes_nothing",
    WritesIntoTokens: "changes_nothing",
    LastBatchOnly: "parts_give_the_whole",
    FinishesAgain: "finish_goes_on",
    FirstWins: "merge_is_seeing_all",
    CarriesTheWrongWay: "supports",
    CarriesAnything: "supports",
    ComparesWithTheFirst: "parts_give_the_whole",
    WritesIntoTheOriginal: "changes_nothing",
    MergesInOtherBits: "batches_merge_bit_for_bit",
    AddsChunksTwice: "chunks_add_bit_for_bit",
}
