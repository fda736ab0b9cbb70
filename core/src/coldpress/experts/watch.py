"""Watching: what experts are shown while their inputs are observed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from coldpress.experts.linear import LinearExperts


@contextmanager
def watched_experts(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, experts among the modules are run so that their inputs can be observed.

    Outputs are those of the router's choice, whatever experts are shown.

    Args:
        modules: all modules of what is about to run.
    """
    found = [module for module in modules if isinstance(module, LinearExperts)]
    for experts in found:
        experts.watched = True
    try:
        yield
    finally:
        for experts in found:
            experts.watched = False
