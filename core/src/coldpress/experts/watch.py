"""Watching: what experts are shown while their inputs are observed."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from coldpress.experts.linear import LinearExperts
from coldpress.routed import Observed
from coldpress.stage import Layer


def observed_experts(modules: Mapping[str, nn.Module], observed: Iterable[Observed]) -> list[LinearExperts]:
    """The modules of experts with layers that are observed.

    Args:
        modules: of a stage, by name.
        observed: layers and other points.
    """
    names = [point.name for point in observed if isinstance(point, Layer)]
    experts = {f"{name}.": module for name, module in modules.items() if isinstance(module, LinearExperts)}
    return [module for home, module in experts.items() if any(name.startswith(home) for name in names)]


@contextmanager
def watched_experts(modules: Iterable[nn.Module], *, routed: bool = False) -> Iterator[None]:
    """Inside, experts among the modules are run so that their inputs can be observed.

    Outputs are those of the router's choice, whatever experts are shown.

    Args:
        modules: all modules of what is about to run.
        routed: experts see the tokens that their router sends them, whatever they are told to show.
    """
    found = {module: module.all_experts for module in modules if isinstance(module, LinearExperts)}
    for experts, all_experts in found.items():
        experts.watched, experts.all_experts = True, all_experts and not routed
    try:
        yield
    finally:
        for experts, all_experts in found.items():
            experts.watched, experts.all_experts = False, all_experts
