"""Methods of one module, replaced for a while: what stood on the instance before, as hooks of libraries do, is kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def replaced(module: nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Inside, `module.name` is `method`; afterwards it is again what it was, on the instance or of the class."""
    before = module.__dict__.get(name)
    module.__dict__[name] = method
    try:
        yield
    finally:
        module.__dict__.pop(name, None)
        if before is not None:
            module.__dict__[name] = before
