"""Key-value caches among the arguments of a block: a block that runs more than once must fill none more than once."""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def on_copies(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a block, run on copies of the caches that it is called with.

    Models are asked not to use a cache; some make one all the same.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        return forward(*(copied(value) for value in args), **{name: copied(value) for name, value in kwargs.items()})

    return run


def copied(value: Any) -> Any:
    """A cache of transformers, or several in a list, with its tensors copied; anything else as it is."""
    if isinstance(value, (list, tuple)) and any(_is_cache(part) for part in value):
        return type(value)(copied(part) for part in value)
    return _deep(value) if _is_cache(value) else value


def holds_keys(value: Any) -> int:
    """How many tokens a cache of transformers holds keys of; 0 for anything else."""
    return sum(int(one.get_seq_length()) for one in _caches(value))


def _caches(value: Any) -> list[Any]:
    parts = value if isinstance(value, (list, tuple)) else [value]
    return [part for part in parts if _is_cache(part)]


def _is_cache(value: Any) -> bool:
    return callable(getattr(value, "get_seq_length", None)) and not isinstance(value, (Tensor, nn.Module))


def _deep(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _deep(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_deep(part) for part in value)
    if not hasattr(value, "__dict__") or isinstance(value, type) or callable(getattr(value, "to_dict", None)):
        return value  # numbers, devices, classes, configurations
    copied = copy.copy(value)
    copied.__dict__.update({name: _deep(part) for name, part in vars(value).items()})
    return copied
