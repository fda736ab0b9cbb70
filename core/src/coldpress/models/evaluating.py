"""A model as it is evaluated: no dropout, no key-value cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model without dropout and without a key-value cache, which a block that runs twice would fill twice."""
    training = model.training
    config: Any = getattr(model, "config", None)
    caching: list[Any] = [
        part for part in (config, getattr(config, "text_config", None)) if getattr(part, "use_cache", False)
    ]
    model.eval()
    for part in caching:
        part.use_cache = False
    try:
        yield
    finally:
        model.train(training)
        for part in caching:
            part.use_cache = True
