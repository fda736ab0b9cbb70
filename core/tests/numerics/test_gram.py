"""Gram matrices: near float64, positive semidefinite, and the same bits every time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coldpress.numerics import folded_gram, gram, unfolded
from coldpress.numerics.gram import _counts_in_int8, _folded_int8

DAMPENING = 0.01


def tokens(seed: int, count: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(width, width, generator=generator) / width**0.5
    return (torch.randn(count, width, generator=generator) @ mixed).bfloat16()


def massive(seed: int = 0, count: int = 2048, width: int = 200) -> Tensor:
    """Like the inputs of an early block: a few tokens that are huge in a few channels, correlated channels."""
    x = tokens(seed, count, width).float()
    x[:, 20:120] = 0.05 * x[:, 20:120] + x[:, :1]
    x[::512, 3] = 800.0
    x[::512, 7] = -300.0
    x[count // 2, 11] = 50.0
    return x.bfloat16()


def scaled_error(found: Tensor, x: Tensor) -> float:
    wide = x.double()
    exact = wide.t() @ wide
    size = exact.diagonal().sqrt().clamp_min(1e-30)
    return float(((found.double() - exact) / size / size[:, None]).abs().max())


def int8_gram(x: Tensor) -> Tensor:
    return unfolded(_folded_int8(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 5, 256, 300])
def test_float32_products_are_exact_enough(dtype, width):
    x = tokens(0, 50, width).to(dtype)

    assert scaled_error(gram(x), x) < 2e-6
    assert gram(x).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 100, 2048])
def test_16_bit_inputs_are_near_the_truth(dtype, count):
    x = tokens(1, count, 130).to(dtype)

    assert scaled_error(gram(x), x) < 4e-3


@pytest.mark.parametrize("make", [massive, lambda: tokens(2, 4096, 333)])
def test_int8_products_are_near_the_truth_and_their_diagonal_is_it(make):
    x = make()
    found = int8_gram(x)

    assert scaled_error(found, x) < 4e-3
    torch.testing.assert_close(found.diagonal(), x.float().square().sum(0), rtol=1e-5, atol=0)
    assert torch.equal(found, found.t())


@given(seed=st.integers(0, 200), count=st.integers(2, 40))
@settings(max_examples=30, deadline=None)
def test_int8_products_are_positive_semidefinite_even_where_tokens_are_few_and_channels_massive(seed, count):
    x = massive(seed, count, 130)
    found = int8_gram(x).double()

    assert torch.linalg.eigvalsh(found)[0] >= -1e-5 * found.diagonal().max()


def test_one_massive_channel_leaves_the_matrix_positive_definite_under_dampening():
    x = massive()
    eye = torch.eye(x.shape[1])

    for found in (gram(x), int8_gram(x)):
        _, info = torch.linalg.cholesky_ex(found + DAMPENING * found.diagonal().mean() * eye)
        assert info == 0


def test_a_token_that_comes_again_and_again_is_not_rounded_the_same_way_every_time():
    x = tokens(3, 8, 130).repeat(512, 1)

    assert scaled_error(int8_gram(x), x) < 2e-3


def test_the_error_shrinks_with_the_number_of_tokens():
    errors = [scaled_error(int8_gram(x), x) for x in (tokens(4, 512, 130), tokens(4, 8192, 130))]

    assert errors[1] < 0.5 * errors[0]


def test_dead_tiny_and_constant_channels_are_no_trouble():
    x = tokens(5, 1024, 136)
    x[:, 0], x[:, 1], x[:, 2], x[:, 3] = 0, 1e-36, 3.0, -1e15

    found = int8_gram(x)

    assert torch.isfinite(found).all()
    assert not found[0].any()
    assert not found[1].any()
    assert scaled_error(found, x) < 4e-3


def test_the_same_tokens_give_the_same_bits():
    x = massive()

    assert torch.equal(gram(x), gram(x.clone()))
    assert torch.equal(int8_gram(x), int8_gram(x.clone()))


def test_folded_matrices_add_up():
    a, b = tokens(6, 600, 300), tokens(7, 600, 300)

    torch.testing.assert_close(unfolded(folded_gram(a) + folded_gram(b)), gram(a) + gram(b), rtol=1e-5, atol=1e-3)


def test_an_input_that_is_strided_is_as_good():
    x = tokens(8, 600, 300)

    torch.testing.assert_close(gram(x[:, ::2]), gram(x[:, ::2].contiguous()), rtol=0, atol=0)


def test_the_precision_that_the_program_has_set_is_left_alone():
    x, before = tokens(9, 300, 260).float(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = gram(x)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)

    assert scaled_error(found, x) < 2e-6


def test_few_tokens_and_narrow_layers_are_multiplied_in_float32():
    assert not _counts_in_int8(tokens(0, 100, 512))
    assert not _counts_in_int8(tokens(0, 600, 64))
    assert not _counts_in_int8(tokens(0, 600, 512).float())
