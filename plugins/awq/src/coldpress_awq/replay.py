"""A module run again on what it was called with, for those who want to see what a change does behind it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

TOKENS = 4096
"""Calls of a module are kept, and run again, until they hold so many tokens."""


@define(eq=False)
class Replay:
    """The first calls of a module.

    Attributes:
        module: whose.
        calls: positional and keyword arguments of each.
    """

    module: nn.Module
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(factory=list)
    _handle: RemovableHandle | None = None

    def start(self) -> "Replay":
        """Keep what the module is called with from now on."""
        self._handle = self.module.register_forward_pre_hook(self._note, with_kwargs=True)
        return self

    def stop(self) -> None:
        """Keep no more."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def outputs(self) -> Iterator[Tensor]:
        """What the module puts out now for each call."""
        for args, kwargs in self.calls:
            again, named = deepcopy((args, kwargs))  # a cache of keys would grow
            found = self.module(*again, **named)
            yield (found if isinstance(found, Tensor) else found[0]).float()

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.append(deepcopy((args, kwargs)))
        if sum(map(_tokens, self.calls)) >= TOKENS:
            self.stop()


def _tokens(call: tuple[tuple[Any, ...], dict[str, Any]]) -> int:
    """How many tokens the first tensor of a call holds, [..., I]."""
    first = next(x for x in (*call[0], *call[1].values()) if isinstance(x, Tensor))
    return first.shape[:-1].numel()


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


def distance(before: Sequence[Tensor], after: Iterator[Tensor]) -> Tensor:
    """The sum of squares of what has changed."""
    return torch.stack([(new - old).square().sum() for old, new in zip(before, after, strict=True)]).sum()


def common_parent(names: Sequence[str]) -> str:
    """The name of the innermost module that holds all of these, itself if there is one."""
    parts = [name.split(".") for name in names]
    depth = next((i for i, same in enumerate(zip(*parts, strict=False)) if len(set(same)) > 1), min(map(len, parts)))
    return ".".join(parts[0][:depth])
