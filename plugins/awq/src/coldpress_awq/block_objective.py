"""The block objective: what a candidate scale changes in the outputs of the module that holds the layers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from attrs import evolve
from torch import Tensor
from torch.utils._pytree import tree_map

from coldpress.plugin import Call

TOKENS = 4096
"""A module is run again on its first calls, until they hold so many tokens."""


def first_calls(calls: Iterable[Call]) -> list[Call]:
    """As many calls of a module as hold `TOKENS` tokens, with tensors of their own; all of them if there are fewer."""
    found, tokens = [], 0
    for call in calls:
        found.append(evolve(call, args=tree_map(_own, call.args), kwargs=tree_map(_own, call.kwargs)))
        first = next(x for x in (*call.args, *call.kwargs.values()) if isinstance(x, Tensor))  # [..., I]
        tokens += first.shape[:-1].numel()
        if tokens >= TOKENS:
            break
    return found


def _own(x: object) -> object:
    """A tensor that stays where its numbers are now, when the one that it is made of is put aside."""
    return x.detach() if isinstance(x, Tensor) else x


@contextmanager
def replaced(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, weights hold the numbers of others, by name; afterwards their own."""
    kept = {name: weight.clone() for name, weight in weights.items()}
    for name, weight in weights.items():
        weight.copy_(others[name])
    try:
        yield
    finally:
        for name, weight in weights.items():
            weight.copy_(kept[name])


def distance(before: Sequence[Tensor], after: Iterable[Tensor]) -> Tensor:
    """The sum of squares of what has changed."""
    return torch.stack([(new - old).square().sum() for old, new in zip(before, after, strict=True)]).sum()


def common_parent(names: Sequence[str]) -> str:
    """The name of the innermost module that holds all of these, itself if there is one."""
    parts = [name.split(".") for name in names]
    depth = next((i for i, same in enumerate(zip(*parts, strict=False)) if len(set(same)) > 1), min(map(len, parts)))
    return ".".join(parts[0][:depth])
