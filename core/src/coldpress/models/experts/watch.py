"""Watching: what experts are shown while their inputs are observed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from coldpress.models.experts.linear import LinearExperts


@contextmanager
def watched_experts(modules: Iterable[nn.Module], *, every_token: bool) -> Iterator[None]:
    """Experts among the modules are run for those who observe them, until the block is left.

    Args:
        modules: all modules of what is about to run.
        every_token: every expert is shown every token; otherwise those that the router sends it.
            Outputs are those of the router's choice in either case.
    """
    found = [module for module in modules if isinstance(module, LinearExperts)]
    for experts in found:
        experts.watch = "all" if every_token else "routed"
    try:
        yield
    finally:
        for experts in found:
            experts.watch = "no"
