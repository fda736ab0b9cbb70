"""Whose inputs a producer's channels scale, read off one run with distinct factors.

With s the factors of the producer's channels and x the input of a candidate consumer before and after:

    x'[:, c] = s[j]^k x[:, c]  for all tokens  ->  column c sees channel j (k = 1, behind a squared ReLU 2)
    x'[:, c] =          x[:, c]                ->  column c sees nothing of the producer
    anything else                              ->  no consumer
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from coldpress.dataflow.inputs import uses_by_site
from coldpress.dataflow.pair import Consumer, Site
from coldpress.dataflow.product_trace import Use
from coldpress.dataflow.workbench import Workbench

EPSILON = 1e-4  # factors lie in 1 + [1, 1.9] epsilon: too close to 1 to change any expert's choice
RTOL = 1e-9
DEGREES = (1, 2)


def distinct_factors(width: int, generator: torch.Generator) -> Tensor:
    """Evenly spaced factors just above one in random order, so that a ratio names its channel, float64 [width]."""
    steps = torch.linspace(1.0, 1.9, width, dtype=torch.float64)
    return 1 + EPSILON * steps[torch.randperm(width, generator=generator)]


def find_consumers(bench: Workbench, after: tuple[Use, ...], factors: Tensor) -> tuple[list[Consumer], int] | None:
    """Everybody whose input is now a known multiple of what it was, and the degree that they share.

    Returns:
        The consumers and their degree; None where experts were chosen otherwise, so that nothing can be compared.
    """
    before = uses_by_site(bench.before.uses)
    then = uses_by_site(after)
    if not _comparable(before, then):
        return None
    for degree in DEGREES:
        found = []
        for (parameter, dim), uses in before.items():
            channels = _channel_map(uses, then[parameter, dim], factors**degree)
            if channels is not None:
                found.append(Consumer(name=bench.name(parameter), site=Site(parameter, dim), channels=channels))
        if found:
            return found, degree
    return [], 1


def _comparable(before: Mapping[tuple[str, int], list[Use]], after: Mapping[tuple[str, int], list[Use]]) -> bool:
    return before.keys() == after.keys() and all(
        [u.input.shape for u in uses] == [u.input.shape for u in after[key]] for key, uses in before.items()
    )


def _channel_map(before: list[Use], after: list[Use], factors: Tensor) -> Tensor | None:
    """For each input channel the factor's index or -1, int64 [I]; None where the input is no such multiple."""
    old = torch.cat([u.input.reshape(-1, u.input.shape[-1]) for u in before])  # [N, I]
    new = torch.cat([u.input.reshape(-1, u.input.shape[-1]) for u in after])  # [N, I]
    if not old.is_floating_point() or torch.allclose(old, new, rtol=1e-12, atol=0):
        return None
    power = old.square().sum(0)  # [I]
    ratio = (new * old).sum(0) / power.clamp_min(1e-300)  # [I]
    largest = old.abs().amax(0)  # [I]
    dead = largest == 0
    if bool(((new - ratio * old).abs().amax(0) > RTOL * largest).any()):
        return None
    order = factors.argsort()
    at = torch.searchsorted(factors[order].contiguous(), ratio.contiguous()).clamp(max=len(factors) - 1)
    near = torch.stack([at, (at - 1).clamp(min=0)])  # [2, I]
    gap = (factors[order][near] - ratio).abs()  # [2, I]
    index = order[near.gather(0, gap.argmin(0, keepdim=True))[0]]  # [I]
    known = gap.amin(0) < RTOL
    still = (ratio - 1).abs() < RTOL
    if bool((~(known | still | dead)).any()) or not bool((known & ~dead).any()):
        return None
    return _fill_dead(torch.where(still & ~known, -1, index), dead)


def _fill_dead(index: Tensor, dead: Tensor) -> Tensor | None:
    """Channels that are always zero follow their neighbours where the map is a mere shift; None where it is not."""
    if not bool(dead.any()):
        return index
    shift = (index - torch.arange(len(index)))[~dead]
    if bool((shift != shift[0]).any()):
        return None
    return torch.arange(len(index)) + shift[0]
