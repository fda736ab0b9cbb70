"""A model as it is evaluated: no dropout, no key-value cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model without dropout and without a key-value cache, which a block that runs twice would fill twice.

    Parts of a model may have configurations of their own: the decoder of T5 has a copy, in which the cache stays on.
    """
    training = [module for module in model.modules() if module.training]
    configs = {id(config): config for module in model.modules() for config in _configs(module)}
    caching = [config for config in configs.values() if getattr(config, "use_cache", False)]
    model.eval()
    for config in caching:
        config.use_cache = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for config in caching:
            config.use_cache = True


def _configs(module: nn.Module) -> Iterator[Any]:
    """The configuration of a module and those inside of it, such as `text_config`."""
    config: Any = getattr(module, "config", None)
    if config is not None:
        yield config
        yield from (part for part in getattr(config, "__dict__", {}).values() if hasattr(part, "use_cache"))
