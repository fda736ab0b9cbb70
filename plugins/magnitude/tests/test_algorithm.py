"""Theorems of magnitude pruning, and of zeros on a grid."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coldpress import QuantizationArgs
from coldpress.numerics import calculate_qparams, dequantize, group, quantize
from coldpress_magnitude.algorithm import codes_with_zeros, prune_blocks, prune_groups, prune_weights


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 1000), st.floats(0, 0.999))
def test_no_mask_of_its_size_keeps_more_of_the_weight(seed, sparsity):
    weight = random(seed, 6, 10)
    found = prune_weights(weight, sparsity=sparsity)
    gone = int((found == 0).sum())

    assert abs(gone - sparsity * 60) <= 0.5
    largest = weight.square().flatten().sort(descending=True).values[: 60 - gone]
    torch.testing.assert_close(found.square().sum(), largest.sum())


@pytest.mark.parametrize(("kept", "size"), [(2, 4), (4, 8), (1, 4), (3, 5), (16, 32)])
def test_the_largest_of_every_group_stay(kept, size):
    weight = random(0, 8, 160)
    found = prune_groups(weight, kept=kept, size=size)

    for old, new in zip(weight.view(-1, size), found.view(-1, size), strict=True):
        assert (new != 0).sum() == kept
        assert old.abs()[new != 0].min() >= old.abs()[new == 0].max()


def test_a_block_of_one_weight_is_a_weight():
    weight = random(0, 12, 20)

    assert torch.equal(prune_blocks(weight, block=(1, 1), sparsity=0.4), prune_weights(weight, sparsity=0.4))


@pytest.mark.parametrize("block", [(12, 1), (1, 20), (4, 5), (2, 20), (12, 20)])
def test_blocks_go_as_a_whole_and_the_smallest_of_them(block):
    weight = random(0, 12, 20)
    found = prune_blocks(weight, block=block, sparsity=0.5)

    def norms(x):
        return x.unfold(0, block[0], block[0]).unfold(1, block[1], block[1]).flatten(2).norm(dim=2).flatten()

    old, new = norms(weight), norms(found)
    assert (new == 0).sum() == round(0.5 * len(old))
    assert torch.equal(found[found != 0], weight[found != 0])
    if (new == 0).any() and (new != 0).any():
        assert old[new == 0].max() <= old[new != 0].min()


@pytest.mark.parametrize("factor", [1e-20, 1e20])
def test_the_size_of_all_weights_does_not_matter(factor):
    weight = random(0, 12, 20)

    torch.testing.assert_close(
        prune_weights(weight * factor, sparsity=0.3), prune_weights(weight, sparsity=0.3) * factor
    )


def test_dtype_and_zeros_stay_and_the_weight_is_not_touched():
    weight = random(0, 12, 20).to(torch.float16)
    weight[:, 3] = 0
    kept = weight.clone()

    for found in (
        prune_weights(weight, sparsity=0.5),
        prune_groups(weight, kept=2, size=4),
        prune_blocks(weight, block=(12, 1), sparsity=0.5),
    ):
        assert found.dtype == torch.float16
        assert (found[:, 3] == 0).all()
        assert torch.equal(weight, kept)


GRIDS = {
    "int4 group": QuantizationArgs(num_bits=4, group_size=10),
    "int4 group asymmetric": QuantizationArgs(num_bits=4, group_size=10, symmetric=False),
    "int8 channel asymmetric": QuantizationArgs(num_bits=8, strategy="channel", symmetric=False),
    "int3 tensor": QuantizationArgs(num_bits=3, strategy="tensor"),
    "fp8 channel": QuantizationArgs(num_bits=8, type="float", strategy="channel"),
}


@pytest.mark.parametrize("args", GRIDS.values(), ids=GRIDS)
def test_codes_stand_for_zero_where_they_should_and_else_for_what_they_did(args):
    weight = random(0, 12, 20) + 0.5
    zeros = random(1, 12, 20) > 0
    grouped = group(weight, args)
    scale, point = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    codes = quantize(weight, scale, point, args)

    found = codes_with_zeros(codes, zeros, scale, point, args)

    assert found.dtype == codes.dtype
    assert (dequantize(found, scale, point, args)[zeros] == 0).all()
    assert torch.equal(found[~zeros].float(), codes[~zeros].float())


def test_a_grid_without_zero_is_told():
    args = QuantizationArgs(num_bits=4, strategy="channel", symmetric=False)
    scale, point = torch.full((2, 1), 0.1), torch.tensor([[0], [-20]], dtype=torch.int8)  # -20 is no code of four bits
    codes, zeros = torch.zeros(2, 8, dtype=torch.int8), torch.zeros(2, 8, dtype=torch.bool)

    zeros[0] = True
    assert codes_with_zeros(codes, zeros, scale, point, args) is not None
    zeros[1, 3] = True
    assert codes_with_zeros(codes, zeros, scale, point, args) is None
