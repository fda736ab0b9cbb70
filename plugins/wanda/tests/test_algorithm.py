"""Theorems of Wanda."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coldpress_wanda.algorithm import wanda

STRUCTURES = [None, (2, 4), (4, 8), (1, 4), (3, 5)]
over_structures = pytest.mark.parametrize("structure", STRUCTURES, ids=str)


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slowly(weight, norm, *, sparsity, structure):
    """Weight by weight."""
    new = weight.clone()
    for row in new:
        size = structure[1] if structure else len(row)
        drop = structure[1] - structure[0] if structure else round(sparsity * len(row))
        for start in range(0, len(row), size):
            places = sorted(range(start, start + size), key=lambda i: float(row[i].abs() * norm[i]))
            row[places[:drop]] = 0
    return new


@over_structures
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.95])
def test_it_is_what_the_paper_says(structure, sparsity):
    weight, norm = random(0, 12, 80), random(1, 80).abs() + 0.01

    found = wanda(weight, norm, sparsity=sparsity, structure=structure)

    assert torch.equal(found, slowly(weight, norm, sparsity=sparsity, structure=structure))


@over_structures
def test_white_inputs_give_magnitude_pruning(structure):
    weight = random(0, 12, 80)

    found = wanda(weight, torch.full((80,), 3.0), sparsity=0.5, structure=structure)

    assert torch.equal(found, slowly(weight, torch.ones(80), sparsity=0.5, structure=structure))


@given(st.integers(0, 1000), st.sampled_from([0.1, 0.5, 0.8]))
def test_no_mask_of_a_row_loses_less_where_inputs_are_independent(seed, sparsity):
    """The theorem behind it: with a diagonal Gram matrix a row loses the sum of (|w| |x|)^2 of what goes."""
    weight, norm = random(seed, 4, 20), random(seed + 1, 20).abs()
    found = wanda(weight, norm, sparsity=sparsity, structure=None)
    loss = ((weight - found) * norm).square().sum(1)

    for other in range(20):
        gone = torch.randperm(20, generator=torch.Generator().manual_seed(other))[: round(sparsity * 20)]
        assert (loss <= (weight * norm)[:, gone].square().sum(1) + 1e-6).all()


@over_structures
def test_rows_in_another_order_are_the_same_rows(structure):
    weight, norm = random(0, 16, 80), random(1, 80).abs()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))

    assert torch.equal(
        wanda(weight[order], norm, sparsity=0.5, structure=structure),
        wanda(weight, norm, sparsity=0.5, structure=structure)[order],
    )


@over_structures
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_size_of_the_norm_does_not_matter(structure, factor):
    weight, norm = random(0, 16, 80), random(1, 80).abs()

    assert torch.equal(
        wanda(weight, norm * factor, sparsity=0.5, structure=structure),
        wanda(weight, norm, sparsity=0.5, structure=structure),
    )


@pytest.mark.parametrize("sparsity", [0.0, 0.111, 0.5, 0.999])
def test_every_row_reaches_its_sparsity_to_one_weight(sparsity):
    found = wanda(random(0, 16, 81), random(1, 81).abs(), sparsity=sparsity, structure=None)

    assert ((found == 0).sum(1) - sparsity * 81).abs().max() <= 0.5


@over_structures
def test_what_nothing_comes_into_goes_first_and_the_smallest_of_it(structure):
    weight, norm = random(0, 16, 80), random(1, 80).abs() + 0.1
    norm[3::5] = 0

    found = wanda(weight, norm, sparsity=0.1, structure=structure)

    if structure is None:
        idle = found[:, 3::5]
        assert ((idle == 0).sum(1) == 8).all()
        assert (idle.abs().masked_fill(idle == 0, 9).amin(1) > weight[:, 3::5].abs().where(idle == 0, 0).amax(1)).all()
    none = wanda(weight, torch.zeros(80), sparsity=0.1, structure=structure)
    assert torch.equal(none, wanda(weight, torch.ones(80), sparsity=0.1, structure=structure))


def test_what_stays_is_as_it_was_and_zeros_stay_zero():
    weight = random(0, 16, 80).bfloat16()
    weight[:, ::7] = 0
    kept = weight.clone()

    found = wanda(weight, random(1, 80).abs(), sparsity=0.5, structure=None)

    assert found.dtype == torch.bfloat16
    assert torch.equal(found[found != 0], weight[found != 0])
    assert (found[:, ::7] == 0).all()
    assert torch.equal(weight, kept)
