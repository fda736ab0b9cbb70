"""What a configuration promises, held against the tensors that are there, before a module is built."""

import re
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from math import prod
from typing import Any

import torch

from coldpress.errors import ModelError
from coldpress.source import Weights

_TIMES, _SMALL = 16, 10**7  # packed weights are fewer numbers than they stand for; small models cost nothing
_MANY = 1024  # so many layers or experts are built before it is asked whether there are any
_COUNTS = re.compile(r"(^|_)n(um)?_.*(layers?|blocks?|experts?)$|^n_layers?$|^num_(layers|blocks|experts)$")


def check_promises(config: Any, names: Iterable[str], called: str) -> None:
    """Refuse a configuration that promises thousands of layers or experts which no tensor belongs to.

    Args:
        config: of the model; configurations inside of it are looked at too.
        names: of the tensors that are there.
        called: what the user called the model.

    Raises:
        ModelError: names the key, its value, and how many there are.
    """
    there = 1 + max((int(number) for name in names for number in re.findall(r"\.(\d+)(?=\.)", name)), default=-1)
    for part in _parts(config):
        for key, value in vars(part).items():
            if isinstance(value, int) and value > max(_MANY, 4 * there) and _COUNTS.search(key):
                raise ModelError(
                    f"{called!r}: its configuration promises {key} = {value}, and the tensors that are there count to "
                    f"{there}: it is another model's, or damaged"
                )


def check_size(config: Any, build: Callable[[Any], Any], weights: Weights, called: str) -> None:
    """Refuse a configuration whose model is many times larger than all tensors that are there.

    Args:
        config: of the model.
        build: makes a model of a copy of it; it is called where tensors have no memory.
        weights: that are there.
        called: what the user called the model.

    Raises:
        ModelError: says how many weights there would be, and how many there are.
    """
    try:
        with torch.device("meta"):
            wanted = sum(parameter.numel() for parameter in build(deepcopy(config)).parameters())
    except Exception:
        return
    there = sum(prod(weights.shape(name)) for name in weights.names())
    if wanted > _TIMES * there + _SMALL:
        raise ModelError(
            f"{called!r}: its configuration promises {wanted} weights, and the files hold {there} numbers: it is "
            "another model's, or damaged"
        )


def _parts(config: Any) -> Iterator[Any]:
    """A configuration and all inside of it."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from _parts(value)
