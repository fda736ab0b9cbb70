"""Parameters that modules share, and giving one of them a value of its own."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from coldpress.checkpoint.tie import settle_ties


def untie(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """Give each named layer that shares its weight with another module a copy of its own.

    The configuration of a model of which something is no longer tied says so afterwards, in every table.

    Args:
        model: changed in place.
        layers: modules with a `weight`; the last of those that share one keeps it.

    Returns:
        The names of the layers that got a copy.
    """
    copied = [name.removesuffix(".weight") for name in separate(model, [f"{layer}.weight" for layer in layers])]
    if copied:
        settle_ties(model)
    return copied


def separate(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Give each named parameter that has other names too a tensor of its own, with the same values.

    Args:
        model: changed in place.
        names: of parameters; the last of those that are one keeps it.

    Returns:
        The names of the parameters that are new.
    """
    owners = Counter(
        id(tensor) for module in model.modules() for tensor in module._parameters.values() if tensor is not None
    )
    changed = []
    for name in names:
        home, _, part = name.rpartition(".")
        module: Any = model.get_submodule(home)
        tensor: Tensor = getattr(module, part)
        if owners[id(tensor)] > 1:
            owners[id(tensor)] -= 1
            setattr(module, part, nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad))
            changed.append(name)
    return changed


def untie_embeddings(model: Any) -> None:
    """Give the output head weights of its own, where it shares the input embedding's."""
    head = model.get_output_embeddings()
    if head is not None:
        untie(model, [name for name, module in model.named_modules() if module is head])
