"""Which batches a rank runs, and how problems are divided."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress.distributed import ALONE, WHOLE, Ranks, Share


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 9000))
def test_every_batch_has_one_owner_and_the_busiest_rank_as_few_as_can_be(count, size, tokens):
    shares = [Share.of(Ranks(rank, size), [tokens] * count) for rank in range(size)]
    own = [[index for index in range(count) if share.owns(index)] for share in shares]

    assert sorted(index for one in own for index in one) == list(range(count))
    assert max(map(len, own)) == -(-count // size)
    assert [index for one in shares[0].rounds(count) for index in one] == list(range(count))


def test_batches_of_one_chunk_stay_together():
    share = Share.of(Ranks(0, 2), [512] * 32)

    assert [share.owner(index) for index in range(32)] == ([0] * 8 + [1] * 8) * 2


def test_a_rank_without_batches_runs_the_first():
    share = Share.of(Ranks(2, 3), [10, 10])

    assert list(share.batches([{"a": 1}, {"b": 2}])) == [(0, {"a": 1})]
    assert not share.owns(0)


def test_one_process_has_everything():
    assert list(WHOLE.batches([{"a": 1}, {"b": 2}])) == [(0, {"a": 1}), (1, {"b": 2})]
    assert WHOLE.ranks is ALONE
    assert ALONE.gather("it", 1) == [1]
    assert ALONE.broadcast("it", 1) == 1


def test_problems_are_solved_one_at_a_time_where_there_is_one_process():
    log = []

    def solve(item):
        log.append(f"solve {item}")
        return item * item

    for item, solution, seconds in WHOLE.divided("squares", [2, 3], solve, costs=[1, 1]):
        log.append(f"{item} {solution}")
        assert seconds >= 0

    assert log == ["solve 2", "2 4", "solve 3", "3 9"]


@pytest.mark.parametrize("costs", [[5, 4, 3, 3, 3], [1], [1, 1]])
def test_costly_problems_are_dealt_first(costs):
    from coldpress.distributed.share import dealt

    owners = dealt(costs, 2)
    load = [sum(c for c, o in zip(costs, owners, strict=True) if o == rank) for rank in (0, 1)]

    assert max(load) <= max(max(costs), (sum(costs) + max(costs)) / 2)
