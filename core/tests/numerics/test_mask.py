"""Masks: exactly as many as asked for, the first of equal ones, and what n:m means."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coldpress.errors import SchemeError
from coldpress.numerics.mask import (
    check_n_of_m,
    parse_n_of_m,
    prune_by_score,
    score_by_norm,
    smallest,
    smallest_in_groups,
)


def slowly(scores, count):
    """Of a row: sorted by size, equal ones by place."""
    order = sorted(range(len(scores)), key=lambda i: (scores[i], i))
    return torch.tensor([i in order[:count] for i in range(len(scores))])


@given(st.integers(1, 40), st.integers(-1, 45), st.integers(1, 6), st.integers(0, 1000))
def test_they_are_those_that_sorting_gives(length, count, levels, seed):
    scores = torch.randint(levels, (3, length), generator=torch.Generator().manual_seed(seed)).float()
    scores[scores == 0] = -torch.inf

    found = smallest(scores, count)

    assert torch.equal(found, torch.stack([slowly(row.tolist(), max(count, 0)) for row in scores]))


@pytest.mark.parametrize("length", [4, 100])
def test_any_dimension_will_do(length):
    scores = torch.randn(5, length, 3, generator=torch.Generator().manual_seed(0))

    assert torch.equal(smallest(scores, 2, dim=1), smallest(scores.movedim(1, 2), 2).movedim(2, 1))


def test_groups_lie_side_by_side():
    scores = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 0.0, 5.0, 4.0]])

    assert smallest_in_groups(scores, 1, 2).tolist() == [[False, True, False, True], [True, False, False, True]]


def test_n_of_m_stay():
    assert parse_n_of_m("2:4", 0.5) == (2, 4)
    assert parse_n_of_m("1:4", 0.75) == (1, 4)
    assert parse_n_of_m("2:3") == (2, 3)
    assert parse_n_of_m("0:0", 0.3) is None
    assert parse_n_of_m("unstructured") is None


@pytest.mark.parametrize("text", ["", "2", "2:", "4:2", "4:4", "0:4", "-2:4", "2:4:8", "two:four"])
def test_other_texts_are_refused(text):
    with pytest.raises(SchemeError, match="it is n:m with 0 < n < m"):
        parse_n_of_m(text)


def test_a_sparsity_that_means_the_zeros_is_told_how_to_write_it():
    with pytest.raises(SchemeError, match=r"keeps 1 of 4 weights, a sparsity of 0.75.*write 3:4 to keep 3"):
        parse_n_of_m("1:4", 0.25)


def test_columns_must_split():
    check_n_of_m("layer", 12, 4)

    with pytest.raises(SchemeError, match="layer: 10 columns do not split into groups of 4"):
        check_n_of_m("layer", 10, 4)


@pytest.mark.parametrize("structure", [None, (2, 4)])
def test_pruning_by_norm_is_pruning_the_scaled_weights_by_magnitude(structure):
    generator = torch.Generator().manual_seed(0)
    weight, norm = torch.randn(16, 80, generator=generator), torch.rand(80, generator=generator) + 0.1

    found = prune_by_score(weight, score_by_norm(weight, norm), sparsity=0.5, structure=structure)

    scaled = prune_by_score(weight * norm, (weight * norm).abs(), sparsity=0.5, structure=structure)
    assert torch.equal(found != 0, scaled != 0)
    assert torch.equal(found[found != 0], weight[found != 0])


def test_what_meets_only_zeros_goes_first_and_of_that_the_smallest():
    weight = torch.tensor([[5.0, 1.0, 9.0, 7.0]])

    found = prune_by_score(weight, score_by_norm(weight, torch.tensor([1.0, 1, 0, 0])), sparsity=0.25, structure=None)

    assert found.tolist() == [[5, 1, 9, 0]]
