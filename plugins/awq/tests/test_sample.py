"""The Gram matrix of some tokens."""

import pytest
import torch

from coldpress.testing import conformance
from coldpress_awq.sample import SampledGram

test_all_tokens = conformance(SampledGram, settings={"every": 1})

X = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))


def seen(statistic, *parts):
    value = None
    for part in parts:
        value = statistic.update(value, part)
    return statistic.finish(value)


@pytest.mark.parametrize("sizes", [[500], [100] * 5, [7] * 71 + [3], [1] * 500])
def test_the_same_tokens_are_taken_however_they_are_batched(sizes):
    taken = torch.cat([X[:40], X[40:][::5]])

    value = seen(SampledGram(first=40, every=5), *torch.split(X, sizes))

    assert (value.count, value.seen) == (len(taken), 500)
    torch.testing.assert_close(value.total, taken.t() @ taken)


def test_ranks_add_up():
    statistic = SampledGram(first=10, every=3)
    a, b = seen(statistic, X[:200]), seen(statistic, X[200:])

    both = statistic.merge(a, b)

    torch.testing.assert_close(both.total, a.total + b.total)
    assert both.seen == 500


def test_a_single_token_is_taken():
    assert seen(SampledGram(first=0), X[:1]).count == 1
