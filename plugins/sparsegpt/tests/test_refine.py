"""Refined masks: the error falls with every pass, and no group could be chosen better."""

from itertools import combinations

import pytest
import torch

from coldpress_sparsegpt import refine
from coldpress_sparsegpt.algorithm import prepare, sparsegpt
from coldpress_sparsegpt.refine import loss_of


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(seed, width):
    """The Gram matrix of inputs whose channels depend on each other, [I, I]."""
    x = random(seed, 4 * width, width) @ random(seed + 1, width, width)
    return x.t() @ x


def refined(weight, sparse, gram, **how):
    return refine.refined([weight], [sparse], gram, **how)[0]


def pruned(weight, gram, structure=None):
    """What SparseGPT makes of a weight, half of it zeros."""
    factor = prepare(gram, dampening_frac=0.01)
    how = {"sparsities": [0.5], "structure": structure, "block_size": 128, "keep_zeros": False}
    return sparsegpt([weight], factor, **how)[0].weight


def damped(gram):
    return gram.double() + 0.01 * gram.double().diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)


def loss(weight, new, gram):
    """What the outputs of each row lose, [O], in float64."""
    error = weight.double() - new.double()
    return ((error @ gram) * error).sum(1)


@pytest.mark.parametrize("structure", [(2, 4), (1, 4), (4, 8), None], ids=str)
def test_the_error_falls_with_every_pass_and_zeros_are_as_many(structure):
    weight, gram = random(0, 12, 64), correlated(1, 64)
    sparse = pruned(weight, gram, structure)

    found = [
        refined(weight, sparse, gram, dampening=0.01, structure=structure, passes=passes) for passes in (0, 1, 2, 8)
    ]

    losses = [float(loss(weight, one, damped(gram)).sum()) for one in found]
    assert torch.equal(found[0], sparse)
    assert losses[0] > losses[1] > losses[2] >= losses[3]
    if structure is None:
        assert all(torch.equal(one != 0, sparse != 0) for one in found)
    else:
        kept = [(one.unflatten(1, (-1, structure[1])) != 0).sum(-1) for one in found]
        assert all(bool((one == structure[0]).all()) for one in kept)


def test_no_group_could_be_chosen_better_in_the_end():
    weight, gram = random(0, 3, 12), correlated(1, 12)
    found = refined(weight, pruned(weight, gram, (2, 4)), gram, dampening=0.01, structure=(2, 4), passes=100).double()

    best, matrix = loss(weight, found, damped(gram)), damped(gram)
    for start in (0, 4, 8):
        for pair in combinations(range(start, start + 4), 2):
            other = found.clone()
            other[:, start : start + 4] = 0
            lacking = (weight.double() - other) @ matrix
            other[:, list(pair)] = torch.linalg.solve(matrix[list(pair)][:, list(pair)], lacking[:, list(pair)].t()).t()
            assert bool((loss(weight, other, matrix) >= best * (1 - 1e-4)).all())


def test_what_stays_is_fitted_by_least_squares_in_the_end():
    weight, gram = random(0, 2, 16), correlated(1, 16)
    sparse = pruned(weight, gram)

    found = refined(weight, sparse, gram, dampening=0.01, structure=None, passes=400)

    matrix = damped(gram)
    for row in range(2):
        kept = (sparse[row] != 0).nonzero()[:, 0]
        expected = torch.linalg.solve(matrix[kept][:, kept], (matrix @ weight[row].double())[kept])
        torch.testing.assert_close(found[row, kept].double(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dampening_frac", [0.0, 0.01])
@pytest.mark.parametrize("structure", [(2, 4), None], ids=str)
def test_weights_of_inputs_that_are_always_zero_stay_gone(structure, dampening_frac):
    weight, x = random(0, 8, 64), random(1, 256, 64) * torch.logspace(0, -3, 64)  # [O, I], [T, I]
    x[:, 1::8] = 0
    x[:, 40:44] = 0  # a whole group
    gram, dead, lone = x.t() @ x, (x == 0).all(0), torch.arange(64) % 8 == 1
    factor = prepare(gram, dampening_frac=dampening_frac)
    how = {"sparsities": [0.5], "structure": structure, "block_size": 128, "keep_zeros": False}
    sparse = sparsegpt([weight], factor, **how)[0].weight

    found = refined(weight, sparse, gram, dampening=factor.dampening, structure=structure, passes=2)

    lone[41] = False  # two of the whole group stay
    assert not found[:, lone].any()
    assert torch.equal((found != 0).sum(), (sparse != 0).sum())
    assert loss(weight, found, gram.double()).sum() < loss(weight, sparse, gram.double()).sum()
    torch.testing.assert_close(found[:, dead], weight[:, dead] * (found[:, dead] != 0))  # nothing moves them


def test_the_error_that_is_reported_is_that_of_the_outputs():
    weight, gram = random(0, 5, 16), correlated(1, 16)
    sparse = pruned(weight, gram)

    assert loss_of(weight, sparse, gram) == pytest.approx(float(loss(weight, sparse, gram.double()).sum()), rel=1e-4)
