"""Weights that modules share, and giving a module a weight of its own."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import nn


def untie(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Give each named module that shares its weight with another one a copy of its own.

    The configuration of a model whose embeddings are no longer tied says so afterwards.

    Args:
        model: changed in place.
        names: modules with a `weight`; the last of those that share one keeps it.

    Returns:
        The names of the modules that got a copy.
    """
    owners: Counter[int] = Counter(id(module.weight) for module in model.modules() if _has_weight(module))
    copied = []
    for name in names:
        module: Any = model.get_submodule(name)
        if owners[id(module.weight)] > 1:
            owners[id(module.weight)] -= 1
            module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=module.weight.requires_grad)
            copied.append(name)
    config: Any = getattr(model, "config", None)
    if copied and getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False
    return copied


def untie_embeddings(model: Any) -> None:
    """Give the output head weights of its own, where it shares the input embedding's."""
    head = model.get_output_embeddings()
    if head is not None:
        untie(model, [name for name, module in model.named_modules() if module is head])


def _has_weight(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), nn.Parameter)
