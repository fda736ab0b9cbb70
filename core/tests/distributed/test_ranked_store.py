"""Statistics of several ranks: the bits of one process, whatever the batches are and whichever layers see them."""

from threading import Barrier, Thread

import pytest
import torch
from attrs import frozen
from torch import nn

from coldpress.calibration.ranked_store import RankedStore
from coldpress.calibration.statistics import Absmax, Gram, Histogram, Mean, Minmax, SecondMoment
from coldpress.calibration.store import StatisticStore
from coldpress.calibration.tap import BatchInputs
from coldpress.distributed import Ranks, Share
from coldpress.distributed.packing import pack, unpack
from coldpress.plugin import Modifier, Needs, Statistic
from coldpress.stage import Layer

CPU = torch.device("cpu")


class Board:
    """Where the threads of one test meet."""

    def __init__(self, size):
        self.barrier, self.values = Barrier(size, timeout=20), [None] * size


class Threads(Ranks):
    """Ranks that are threads: what they exchange is packed as for processes."""

    def __init__(self, rank, size, board):
        super().__init__(rank, size)
        self.board = board

    def gather(self, what, value):
        self.board.values[self.rank] = (what, pack(value))
        self.board.barrier.wait()
        found = list(self.board.values)
        self.board.barrier.wait()
        assert {one for one, _ in found} == {what}
        return [unpack(packed, CPU) for _, packed in found]

    def broadcast(self, what, value, *, source=0):
        return self.gather(what, value)[source]

    def transfer(self, what, transfers):
        sent = {n: one.like.clone() for n, one in enumerate(transfers) if one.source == self.rank}
        found = self.gather(f"{what} {len(transfers)}", sent)
        return [found[one.source][n] if one.target == self.rank else None for n, one in enumerate(transfers)]


@frozen(kw_only=True)
class Ordered(Statistic):
    """Depends on the order of batches, and has no merge."""

    def update(self, value, x):
        return x.sum(0) if value is None else value * 0.5 + x.sum(0)


@frozen(kw_only=True, eq=False)
class Reads(Modifier):
    def needs(self):
        return Needs(data=True)


STATISTICS = (Gram(chunk=16), Gram(chunk=5), Absmax(), Histogram(), Mean(), Minmax(), SecondMoment(), Ordered())
NAMES = ("q", "k", "o", "expert")


def layer(name):
    return Layer(name, nn.Linear(8, 2, bias=False), ("Linear",))


def batches(count, *, seed=0):
    """Of each batch what four layers see: q and k the same but in batch 2, the expert in batch 1 alone."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        tokens = {key: torch.randn(3 + 4 * index + key, 8, generator=generator) for key in range(4)}
        calls = {"q": (0,), "k": (3,) if index == 2 else (0,), "o": (1, 2)}
        if index == 1:
            calls["expert"] = (2,)
        found.append(BatchInputs(index, calls, tokens))
    return found


def collected(store, seen, shown=()):
    modifier = Reads()
    with store.requesting(modifier):
        for name in NAMES:
            for statistic in STATISTICS:
                store.request(layer(name), statistic)
    store.begin([modifier])
    handed = list(store.seeing(((one, None) for one in seen), shown))
    store.finish()
    values = {(name, repr(one)): store.value(layer(name), one) for name in NAMES for one in STATISTICS}
    groups = [[one.name for one in group] for group in store.input_groups([layer(name) for name in NAMES])]
    return values, groups, handed


def in_ranks(size, work):
    board, found = Board(size), [None] * size

    def run(rank):
        try:
            found[rank] = work(Threads(rank, size, board))
        except BaseException as error:
            board.barrier.abort()
            found[rank] = error

    threads = [Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [one for one in found if isinstance(one, BaseException)]
    if errors:
        raise errors[0]
    return found


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("run_length", [1, 2])
def test_several_ranks_have_the_bits_of_one(size, count, run_length):
    alone, groups, _ = collected(StatisticStore(), batches(count))

    def work(ranks):
        share = Share(ranks, run_length)
        own = [one for one in batches(count) if share.owns(one.index)]
        return collected(RankedStore(share=share, count=count), own, shown=["o"])

    for values, found_groups, handed in in_ranks(size, work):
        assert found_groups == groups
        assert {key for key, one in values.items() if one is None} == {key for key, one in alone.items() if one is None}
        assert all(torch.equal(pack(values[key]), pack(one)) for key, one in alone.items())
        assert [one.index for one in handed] == list(range(count))
        for seen, whole in zip(handed, batches(count), strict=True):
            assert torch.equal(seen.batch(["o"]).inputs["o"], whole.batch(["o"]).inputs["o"])
            assert [len(seen.tokens[key]) for key in seen.tokens] == [len(whole.tokens[key]) for key in whole.tokens]


def test_a_batch_that_another_rank_runs_too_counts_once():
    def work(ranks):
        return collected(RankedStore(share=Share(ranks), count=3), batches(3))  # all of them, on both

    alone, _, _ = collected(StatisticStore(), batches(3))
    for values, _, _ in in_ranks(2, work):
        assert all(torch.equal(pack(values[key]), pack(one)) for key, one in alone.items())
