"""What an error of a layer costs, and the choice of one scheme for each unit within a budget of bytes.

Legend: `O` out, `I` in; E = W - Q the error of a weight, G the mean of x x^T, gamma the mean of g^2 for each output,
g the gradient of the model's loss, summed over tokens, with labels drawn from the model.

To second order the mean KL of a token grows by

    1/2 sum_i gamma_i (E G E^T)_ii                                                                                  (1)

with the Fisher information of a layer's outputs taken for the diagonal gamma, and for independent of the inputs.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from coldpress.numerics import factorize


def cost(error: Tensor, gram: Tensor, gamma: Tensor) -> float:
    """The rise of KL a token by an error of a weight, (1).

    Args:
        error: E, [O, I].
        gram: G, [I, I] float32.
        gamma: [O] float32.
    """
    error = error.float()
    return float(0.5 * (gamma.double() * ((error @ gram) * error).sum(1).double()).sum())


def pivots_by_activity(gram: Tensor) -> Tensor | None:
    """What a squared error of each column weighs after later ones made up for it, [I].

    Later are those of less active inputs: GPTQ goes from the most to the least active one.

    Args:
        gram: G, [I, I] float32.

    Returns:
        The pivots, in the order of the columns of G; None where it cannot be factorized.
    """
    order = gram.diagonal().argsort(descending=True, stable=True)
    factor = factorize(gram, dampening_frac=0.01, order=order)
    return None if factor is None else torch.empty_like(factor.pivots).scatter_(0, order, factor.pivots)


def fed_back_cost(error: Tensor, pivots: Tensor, gamma: Tensor) -> float:
    """The same where errors are fed back to later columns, as GPTQ does: each weighs what these cannot make up for.

    Args:
        error: of rounding to nearest, [O, I].
        pivots: of G, [I].
        gamma: [O] float32.
    """
    return float(0.5 * (gamma.double() * (error.float().square() @ pivots).double()).sum())


def input_cost(weight: Tensor, noise: Tensor, gamma: Tensor) -> float:
    """The rise of KL a token by rounded inputs, whose errors are taken for independent of each other.

    Args:
        weight: [O, I].
        noise: mean squares of the errors of inputs, [I] float32.
        gamma: [O] float32.
    """
    return float(0.5 * (gamma.double() * (weight.float().square() @ noise).double()).sum())


class _States(NamedTuple):
    """Partial choices of which none is both larger and dearer than another, by size.

    Attributes:
        sizes: [N] int64, rising.
        costs: [N] float64, falling.
        parents: index of the choice among those of one unit less, [N].
        options: what the last unit takes, [N].
    """

    sizes: Tensor
    costs: Tensor
    parents: Tensor
    options: Tensor


class _Relaxed:
    """The least cost of some units in a budget if they might be divided: piecewise linear, never above the truth."""

    def __init__(self, units: Sequence[tuple[Tensor, Tensor]]) -> None:
        steps, self.base, self.least = list[tuple[float, int, float]](), 0.0, 0
        for sizes, costs in units:
            hull = _hull(sizes, costs)
            self.base += float(costs[hull[0]])
            self.least += int(sizes[hull[0]])
            for a, b in pairwise(hull):
                size, gain = int(sizes[b] - sizes[a]), float(costs[a] - costs[b])
                steps.append((gain / size, size, gain))
        steps.sort(key=lambda step: -step[0])
        self.sizes = torch.tensor([0, *(step[1] for step in steps)], dtype=torch.int64).cumsum(0)
        self.gains = torch.tensor([0.0, *(step[2] for step in steps)], dtype=torch.float64).cumsum(0)

    def bound(self, room: Tensor) -> Tensor:
        """The least cost in each of some budgets, [N] int64, infinite where the units do not fit; [N] float64."""
        left = room - self.least
        known = left.clamp(min=0, max=int(self.sizes[-1]))
        index = torch.searchsorted(self.sizes, known, right=True).clamp(max=len(self.sizes)) - 1
        after = (index + 1).clamp(max=len(self.sizes) - 1)
        width = (self.sizes[after] - self.sizes[index]).clamp(min=1)
        share = (known - self.sizes[index]).double() / width
        gain = self.gains[index] + share * (self.gains[after] - self.gains[index])
        return torch.where(left < 0, torch.inf, self.base - gain)


def solve(costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], budget: int) -> list[int] | None:
    """One option for each unit, of the least total cost within a budget; exact.

    Undominated partial choices are kept (Nemhauser and Ullmann), without those that even a relaxed rest cannot bring
    below a known choice.

    Args:
        costs: of each option of each unit, not negative.
        sizes: of the same, in bytes.
        budget: bytes.

    Returns:
        The index of an option for each unit; None where the smallest choice is larger than the budget.  Of equal costs
        the smaller choice.
    """
    units = [
        (torch.tensor(list(size), dtype=torch.int64), torch.tensor(list(one), dtype=torch.float64))
        for size, one in zip(sizes, costs, strict=True)
    ]
    if sum(int(size.min()) for size, _ in units) > budget:
        return None
    known = _greedy(units, budget)
    most = sum(float(one[choice]) for (_, one), choice in zip(units, known, strict=True))
    most += 1e-12 * abs(most)
    levels = [
        _States(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64), *[torch.zeros(1).long()] * 2)
    ]
    for number, (size, one) in enumerate(units):
        before, rest = levels[-1], _Relaxed(units[number + 1 :])
        total = (before.sizes[:, None] + size).flatten()  # [N * options]
        paid = (before.costs[:, None] + one).flatten()
        useful = (paid + rest.bound(budget - total) <= most).nonzero()[:, 0]
        order = useful[torch.argsort(paid[useful], stable=True)]
        order = order[torch.argsort(total[order], stable=True)]  # by size, and of one size the cheapest first
        best = paid[order].cummin(0).values
        fresh = torch.ones(len(order), dtype=torch.bool)
        fresh[1:] = paid[order][1:] < best[:-1]
        kept = order[fresh]
        levels.append(_States(total[kept], paid[kept], kept // len(size), kept % len(size)))
    place, found = int(levels[-1].costs.argmin()), list[int]()
    for level in reversed(levels[1:]):
        found.append(int(level.options[place]))
        place = int(level.parents[place])
    return found[::-1]


def _greedy(units: Sequence[tuple[Tensor, Tensor]], budget: int) -> list[int]:
    """A choice within the budget: the smallest, and then the step that gains most for its bytes, while one fits."""
    hulls = [_hull(size, one) for size, one in units]
    places = [0] * len(units)
    room = budget - sum(int(size[hull[0]]) for (size, _), hull in zip(units, hulls, strict=True))
    steps = [
        (float(one[hull[i]] - one[hull[i + 1]]) / int(size[hull[i + 1]] - size[hull[i]]), unit, i)
        for unit, ((size, one), hull) in enumerate(zip(units, hulls, strict=True))
        for i in range(len(hull) - 1)
    ]
    for _, unit, i in sorted(steps, key=lambda step: -step[0]):
        size, hull = units[unit][0], hulls[unit]
        needed = int(size[hull[i + 1]] - size[hull[i]])
        if places[unit] == i and needed <= room:
            places[unit], room = i + 1, room - needed
    return [hull[place] for hull, place in zip(hulls, places, strict=True)]


def _hull(sizes: Tensor, costs: Tensor) -> list[int]:
    """The options on the lower convex hull, from the smallest to the cheapest."""
    order = sorted(range(len(sizes)), key=lambda i: (int(sizes[i]), float(costs[i])))
    hull: list[int] = []
    for i in order:
        if hull and (float(costs[i]) >= float(costs[hull[-1]]) or int(sizes[i]) == int(sizes[hull[-1]])):
            continue
        while len(hull) > 1 and _slope(sizes, costs, hull[-2], hull[-1]) <= _slope(sizes, costs, hull[-2], i):
            hull.pop()
        hull.append(i)
    return hull


def _slope(sizes: Tensor, costs: Tensor, a: int, b: int) -> float:
    """What is gained for each byte from one option to another."""
    return float(costs[a] - costs[b]) / int(sizes[b] - sizes[a])


def ends_first(sizes: Sequence[Sequence[int]], order: Sequence[int], budget: int) -> list[int] | None:
    """A rule of thumb to compare with: units get the largest option that fits, in an order such as from both ends.

    Args:
        sizes: of the options of each unit.
        order: of units, those first that get more.
        budget: bytes.
    """
    smallest = [min(range(len(size)), key=lambda i, size=size: size[i]) for size in sizes]  # type: ignore[misc]
    room = budget - sum(size[i] for size, i in zip(sizes, smallest, strict=True))
    if room < 0:
        return None
    found = smallest
    for unit in order:
        size = sizes[unit]
        fits = [i for i in range(len(size)) if size[i] - size[found[unit]] <= room]
        best = max(fits, key=lambda i: (size[i], -i))
        room -= size[best] - size[found[unit]]
        found[unit] = best
    return found


def uniform(sizes: Sequence[Sequence[int]], budget: int) -> list[int] | None:
    """One option for all units, the largest that fits; None where units have different options, or none fits."""
    if len({len(size) for size in sizes}) > 1:
        return None
    totals = [sum(size[i] for size in sizes) for i in range(len(sizes[0]))]
    fitting = [i for i, total in enumerate(totals) if total <= budget]
    return [max(fitting, key=lambda i: totals[i])] * len(sizes) if fitting else None
