"""Theorems of MagR: what it minimizes gets smaller, and what no input reaches is free to move."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coldpress import QuantizationArgs
from coldpress.testing import draw, random_gram
from coldpress_gptq.algorithm.magr import clip_tops, shrink_ranges

CHANNEL = QuantizationArgs(num_bits=3, strategy="channel")
GROUP = QuantizationArgs(num_bits=3, group_size=8)
both = pytest.mark.parametrize("args", [CHANNEL, GROUP], ids=["channel", "group"])


def ranges(weight, args):
    size = args.group_size or weight.shape[1]
    return weight.view(len(weight), -1, size).abs().amax(-1)


def objective(found, weight, gram, args, alpha):
    """As the paper has it, row by row, in float64."""
    change, hessian = (found - weight).double(), gram.double() / torch.linalg.eigvalsh(gram.double())[-1]
    return (change @ hessian * change).sum(1) / 2 + alpha * ranges(found.double(), args).sum(1)


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(1, 20),
    amount=st.floats(1e-4, 30),
    levels=st.integers(1, 9),
    seed=st.integers(0, 2**20),
)
def test_the_proximal_operator_is_optimal(length, amount, levels, seed):
    """0 is a subgradient: what was clipped off adds up to the amount and lies at the edge; or there is nothing left."""
    x = torch.randint(-levels, levels + 1, (4, length), generator=torch.Generator().manual_seed(seed)).double()

    found = clip_tops(x, amount)

    off = (x - found).abs().sum(-1)
    gone = x.abs().sum(-1) <= amount
    assert not found[gone].any()
    torch.testing.assert_close(off[~gone], torch.full_like(off[~gone], amount))
    edge = found.abs().amax(-1, keepdim=True)
    assert ((x == found) | torch.isclose(found.abs(), edge)).all()
    assert (found * x >= 0).all()


@both
@pytest.mark.parametrize("tokens", [3, 20, 200])
@pytest.mark.parametrize("alpha", [1e-3, 1e-1])
def test_every_step_goes_down(args, tokens, alpha):
    weight, gram = draw(10, 24), random_gram(24, tokens=tokens)
    values = [
        objective(
            shrink_ranges(weight, gram, args, alpha=alpha, keep_zeros=False, steps=steps), weight, gram, args, alpha
        )
        for steps in range(12)
    ]

    assert torch.equal(values[0], objective(weight, weight, gram, args, alpha))
    for before, after in pairwise(values):
        assert (after <= before + 1e-6).all()
    assert (values[-1] < values[0]).all()


@both
def test_after_many_steps_it_is_the_minimum(args):
    weight, gram = draw(5, 24), random_gram(24)
    found = shrink_ranges(weight, gram, args, alpha=0.05, keep_zeros=False, steps=30000)
    least = objective(found, weight, gram, args, 0.05)

    for seed in range(20):
        other = found + 10 ** -(1 + seed % 4) * draw(5, 24, seed=seed + 5)
        assert (objective(other, weight, gram, args, 0.05) >= least - 1e-5).all()


@both
def test_outputs_on_few_tokens_hardly_change_and_ranges_do(args):
    """Fewer tokens than columns: whole directions are free."""
    weight, x = draw(10, 64), draw(6, 64, seed=1)

    found = shrink_ranges(weight, x.t() @ x, args, alpha=1e-3, keep_zeros=False, steps=3000)

    assert ((found - weight) @ x.t()).norm() < 0.02 * (weight @ x.t()).norm()
    assert ranges(found, args).mean() < 0.75 * ranges(weight, args).mean()


def test_what_no_input_reaches_is_only_clipped():
    weight, gram = draw(10, 24), random_gram(24)
    gram[:, 5], gram[5] = 0, 0
    weight[:, 5] = 10

    found = shrink_ranges(weight, gram, CHANNEL, alpha=0.5, keep_zeros=False, steps=5)

    torch.testing.assert_close(found[:, 5], torch.full((10,), 10 - 5 * 0.5))
    torch.testing.assert_close(found[:, :5], weight[:, :5])


def test_zeros_are_kept_when_asked_for():
    weight, gram = draw(10, 24), random_gram(24)
    weight[draw(10, 24, seed=3) > 0] = 0
    zeros = weight == 0

    kept = shrink_ranges(weight, gram, GROUP, alpha=0.05, keep_zeros=True)
    free = shrink_ranges(weight, gram, GROUP, alpha=0.05, keep_zeros=False)

    assert not kept[zeros].any()
    assert free[zeros].any()
    assert (objective(kept, weight, gram, GROUP, 0.05) <= objective(weight, weight, gram, GROUP, 0.05)).all()


def test_inputs_that_are_zero_change_nothing():
    weight = draw(4, 24)

    assert torch.equal(shrink_ranges(weight, torch.zeros(24, 24), GROUP, alpha=1, keep_zeros=False), weight)


def test_rows_do_not_know_each_other():
    weight, gram = draw(10, 24), random_gram(24)

    together = shrink_ranges(weight, gram, GROUP, alpha=0.01, keep_zeros=False)

    alone = torch.cat([shrink_ranges(row[None], gram, GROUP, alpha=0.01, keep_zeros=False) for row in weight])
    torch.testing.assert_close(together, alone)
