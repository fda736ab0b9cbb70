"""The cost of an error, and the choice within a budget against every choice there is."""

from itertools import product

import pytest
import torch

from coldpress.numerics import factorize
from coldpress_autobits.algorithm import (
    _hull,
    _Relaxed,
    cost,
    ends_first,
    fed_back_cost,
    input_cost,
    pivots_by_activity,
    solve,
)


def problem(seed, units=5, options=3):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 40, (units, options), generator=generator).tolist()
    costs = torch.rand(units, options, generator=generator, dtype=torch.float64).tolist()
    return costs, sizes, int(torch.randint(units * 8, units * 35, (1,), generator=generator))


def by_brute_force(costs, sizes, budget):
    found = [
        (sum(costs[u][i] for u, i in enumerate(choice)), choice)
        for choice in product(*(range(len(size)) for size in sizes))
        if sum(sizes[u][i] for u, i in enumerate(choice)) <= budget
    ]
    return min(found)[0] if found else None


@pytest.mark.parametrize("seed", range(150))
def test_the_choice_is_the_best_of_all(seed):
    costs, sizes, budget = problem(seed, units=2 + seed % 5, options=2 + seed % 3)

    found, best = solve(costs, sizes, budget), by_brute_force(costs, sizes, budget)

    if best is None:
        assert found is None
        return
    assert sum(sizes[u][i] for u, i in enumerate(found)) <= budget
    assert sum(costs[u][i] for u, i in enumerate(found)) == pytest.approx(best, abs=1e-12)


def test_hundreds_of_units_are_solved():
    costs, sizes, _ = problem(0, units=400)

    found = solve(costs, sizes, 400 * 18)

    assert len(found) == 400
    assert sum(sizes[u][i] for u, i in enumerate(found)) <= 400 * 18


@pytest.mark.parametrize("seed", range(20))
def test_the_relaxed_cost_is_never_above_the_truth(seed):
    costs, sizes, budget = problem(seed)
    units = [(torch.tensor(s), torch.tensor(c, dtype=torch.float64)) for s, c in zip(sizes, costs, strict=True)]

    bound, best = float(_Relaxed(units).bound(torch.tensor([budget]))[0]), by_brute_force(costs, sizes, budget)

    assert bound <= (torch.inf if best is None else best + 1e-12)


def test_options_that_are_larger_and_dearer_are_not_on_the_hull():
    assert _hull(torch.tensor([4, 1, 3, 2]), torch.tensor([0.0, 3.0, 2.9, 1.0])) == [1, 3, 0]


def test_a_budget_for_no_choice_gives_none():
    assert solve([[1.0, 0.0]], [[5, 9]], 4) is None
    assert ends_first([[5, 9]], [0], 4) is None


def test_ends_first_gives_more_to_what_comes_first():
    assert ends_first([[1, 4]] * 3, [2, 0, 1], 9) == [1, 0, 1]


def layer(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    error, gamma = torch.randn(6, 12, generator=generator), torch.rand(6, generator=generator)
    return x, error, gamma


def test_the_cost_is_half_the_weighted_squares_of_the_errors_of_outputs():
    x, error, gamma = layer()

    expected = 0.5 * float(((x @ error.T).square().mean(0) * gamma).sum())

    assert cost(error, x.T @ x / len(x), gamma) == pytest.approx(expected, rel=1e-5)


def test_the_cost_does_not_change_with_the_unit_of_an_output():
    x, error, gamma = layer()
    gram, unit = x.T @ x / len(x), torch.tensor([0.1, 1, 10, 2, 5, 0.5])

    moved = cost(error * unit[:, None], gram, gamma / unit.square())

    assert moved == pytest.approx(cost(error, gram, gamma), rel=1e-5)


def test_errors_that_are_fed_back_cost_no_more():
    x, error, gamma = layer()
    gram = x.T @ x / len(x)
    factor = factorize(gram, dampening_frac=0.0)

    assert fed_back_cost(error, factor.pivots, gamma) < cost(error.abs(), gram.abs(), gamma)
    pivots = pivots_by_activity(gram)
    assert pivots is not None
    assert fed_back_cost(error, pivots, gamma) < cost(error.abs(), gram.abs(), gamma)
    white = torch.eye(12)
    assert fed_back_cost(error, torch.ones(12), gamma) == pytest.approx(cost(error, white, gamma), rel=1e-5)


def test_what_is_fed_back_does_not_depend_on_the_order_of_the_columns():
    x, error, gamma = layer()
    x = x * torch.logspace(0, 1, 12)[torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    gram, turned = x.T @ x / len(x), torch.arange(11, -1, -1)

    found = fed_back_cost(error, pivots_by_activity(gram), gamma)
    other = fed_back_cost(error[:, turned], pivots_by_activity(gram[turned][:, turned]), gamma)

    assert other == pytest.approx(found, rel=1e-5)
    order = gram.diagonal().argsort(descending=True)
    solved = factorize(gram[order][:, order], dampening_frac=0.01).pivots  # as GPTQ goes
    assert found == pytest.approx(fed_back_cost(error[:, order], solved, gamma), rel=1e-5)


def test_rounded_inputs_cost_what_their_noise_does_to_the_outputs():
    _, weight, gamma = layer()
    noise = torch.rand(12)

    expected = 0.5 * float((gamma * (weight.square() @ noise)).sum())

    assert input_cost(weight, noise, gamma) == pytest.approx(expected, rel=1e-5)
