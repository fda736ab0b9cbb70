"""Hadamard matrices and rotations: theorems."""

import pytest
import torch

from coldpress import NumericsError
from coldpress.numerics import (
    TRANSFORM_TYPES,
    Rotation,
    cayley_step,
    hadamard_block_sizes,
    hadamard_matrix,
    hadamard_orders,
    orthogonalized,
    random_orthogonal,
    rotation_of,
)

UNREACHED = {92, 116, 156, 172, 184, 188, 232, 236}  # below 256, by these constructions


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, *(n for n in range(4, 257, 4) if n not in UNREACHED), 576, 1536])
def test_rows_are_orthogonal_and_the_first_is_ones(n):
    matrix = hadamard_matrix(n)

    assert matrix.dtype == torch.int8
    assert torch.equal(matrix.float() @ matrix.float().t(), n * torch.eye(n))  # whole numbers below 2^24 are exact
    assert torch.equal(matrix[0], torch.ones(n, dtype=torch.int8))


@pytest.mark.parametrize("n", [0, 3, 6, 18, *UNREACHED])
def test_orders_that_are_not_reached_are_refused(n):
    with pytest.raises(NumericsError, match=f"order {n}"):
        hadamard_orders(n)


def test_the_refusal_says_which_blocks_would_do():
    with pytest.raises(NumericsError, match="blocks of 16, 8, 4, 2"):
        hadamard_orders(4304)
    assert hadamard_block_sizes(576)[:3] == [576, 288, 192]


@pytest.mark.parametrize("n", [12, 28, 36, 76, 100, 64, 128, 576, 960])
def test_the_factored_product_is_the_dense_one(n):
    x = random(0, 5, 2 * n)
    dense = torch.block_diag(*[hadamard_matrix(n).double() / n**0.5] * 2)
    rotation = Rotation(2 * n, n)

    torch.testing.assert_close(rotation.apply(x), x @ dense)
    torch.testing.assert_close(rotation.apply_transposed(x), x @ dense.t())


@pytest.mark.parametrize("keeps_ones", [False, True])
@pytest.mark.parametrize("block_size", [None, 12])
@pytest.mark.parametrize("kind", TRANSFORM_TYPES)
def test_rotations_are_orthogonal_and_may_keep_means(kind, block_size, keeps_ones):
    rotation = rotation_of(48, kind, block_size=block_size, keeps_ones=keeps_ones)
    matrix, x = rotation.matrix(), random(1, 7, 48)

    torch.testing.assert_close(matrix @ matrix.t(), torch.eye(48, dtype=torch.float64))
    torch.testing.assert_close(rotation.apply(x), x @ matrix)
    torch.testing.assert_close(rotation.apply_transposed(rotation.apply(x)), x)
    if keeps_ones:
        torch.testing.assert_close(rotation.apply(x).mean(1), x.mean(1))


def test_an_outlier_is_spread_over_all_channels():
    x = torch.zeros(1, 576)
    x[0, 17] = 24.0

    torch.testing.assert_close(rotation_of(576, "hadamard").apply(x).abs(), torch.ones(1, 576))
    assert rotation_of(576, "hadamard", keeps_ones=True).apply(x).abs().max() < 6


def test_the_seed_decides_what_is_drawn():
    first, second, third = (
        rotation_of(32, "random-hadamard", generator=torch.Generator().manual_seed(seed)).matrix() for seed in (1, 1, 2)
    )

    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_blocks_that_do_not_divide_are_refused():
    with pytest.raises(NumericsError, match="do not divide a width of 576"):
        rotation_of(576, "hadamard", block_size=128)


def test_cayley_steps_stay_orthogonal_and_descend():
    """The loss |A R - B|^2 with B = A Q is zero at R = Q."""
    generator = torch.Generator().manual_seed(0)
    a, goal = random(2, 40, 12), random_orthogonal(12, generator)
    rotation = goal @ torch.linalg.matrix_exp(0.3 * (lambda m: m - m.t())(random(3, 12, 12) / 12**0.5))
    losses = []
    for _ in range(200):
        error = a @ rotation - a @ goal
        losses.append(float(error.square().sum()))
        rotation = cayley_step(rotation, 2 * a.t() @ error, learning_rate=0.003)

    assert losses[-1] < 1e-6 * losses[0]
    torch.testing.assert_close(rotation @ rotation.t(), torch.eye(12, dtype=torch.float64))


def test_orthogonalizing_leaves_what_is_orthogonal():
    matrix = random_orthogonal(16, torch.Generator().manual_seed(4))

    torch.testing.assert_close(orthogonalized(matrix), matrix)
