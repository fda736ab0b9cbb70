"""Factors of Gram matrices, against what defines them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coldpress.numerics import factorize


def gram_of(width, tokens, seed=0):
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x.t() @ x).float()


def restored(factor):
    unit = factor.feedback.double() + torch.eye(len(factor.pivots), dtype=torch.float64)
    return unit @ torch.diag(factor.pivots.double()) @ unit.t()


@settings(deadline=None)
@given(width=st.integers(1, 40), seed=st.integers(0, 2**20), frac=st.sampled_from([0.001, 0.01, 0.1]))
def test_the_factor_is_the_dampened_matrix(width, seed, frac):
    gram = gram_of(width, 3 * width, seed)
    factor = factorize(gram, dampening_frac=frac)
    damped = gram.double() + frac * gram.diagonal().double().mean() * torch.eye(width)

    torch.testing.assert_close(restored(factor), damped, rtol=1e-4, atol=1e-4 * float(gram.diagonal().mean()))
    assert torch.equal(factor.feedback, factor.feedback.triu(1))
    assert factor.dampening == frac


def test_white_inputs_give_no_feedback():
    factor = factorize(torch.eye(8) * 5, dampening_frac=0.01)

    assert not factor.feedback.any()
    torch.testing.assert_close(factor.pivots, torch.full((8,), 5.05))


def test_pivots_are_those_of_the_inverse():
    """The textbook way: 1 / U_jj^2 with U the upper Cholesky factor of the inverse."""
    gram = gram_of(24, 96)
    damped = gram.double() + 0.01 * gram.diagonal().double().mean() * torch.eye(24)
    inverse = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)

    factor = factorize(gram, dampening_frac=0.01)

    torch.testing.assert_close(factor.pivots.double(), 1 / inverse.diagonal().square(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dampening_frac", [0.0, 0.01])
def test_channels_that_were_never_active_neither_give_nor_take(dampening_frac):
    gram = gram_of(12, 60)
    gram[[3, 7]] = 0
    gram[:, [3, 7]] = 0
    factor = factorize(gram, dampening_frac=dampening_frac)

    assert not factor.feedback[[3, 7]].any()
    assert not factor.feedback[:, [3, 7]].any()
    assert torch.isfinite(factor.pivots).all()


def test_a_matrix_of_zeros_is_white():
    factor = factorize(torch.zeros(5, 5), dampening_frac=0.01)

    assert not factor.feedback.any()
    assert (factor.pivots > 0).all()


def test_dampening_is_raised_until_the_matrix_is_positive_definite():
    gram = gram_of(10, 40)
    worst = torch.linalg.eigh(gram.double()).eigenvectors[:, 0].float()
    mean = float(gram.diagonal().mean())
    bad = gram - (float(worst @ gram @ worst) + 0.05 * mean) * torch.outer(worst, worst)

    assert factorize(bad, dampening_frac=0.01).dampening == pytest.approx(0.1)


def test_few_tokens_do_without_dampening_of_their_own():
    factor = factorize(gram_of(32, 4), dampening_frac=0.0)

    assert factor is not None
    assert 0 < factor.dampening <= 0.01


def test_what_no_dampening_mends_is_nothing():
    bad = -torch.ones(6, 6)
    bad.diagonal().fill_(1.0)
    bad[0, 1] = bad[1, 0] = 50.0

    assert factorize(bad, dampening_frac=0.01) is None


@pytest.mark.parametrize("frac", [0.01, 0.0])
def test_an_order_is_that_of_the_columns(frac):
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))  # fewer rows: without dampening it is tried again
    gram = x.T @ x
    gram[3], gram[:, 3] = 0, 0
    order, before = torch.randperm(9, generator=torch.Generator().manual_seed(1)), gram.clone()

    found = factorize(gram, dampening_frac=frac, order=order)

    expected = factorize(gram[order][:, order], dampening_frac=frac)
    assert found.dampening == expected.dampening > 0
    assert torch.equal(found.feedback, expected.feedback)
    assert torch.equal(found.pivots, expected.pivots)
    assert torch.equal(gram, before)  # is only read
