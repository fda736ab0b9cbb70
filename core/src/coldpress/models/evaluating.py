"""A model as it is evaluated: no dropout, no key-value cache, nothing compiled; afterwards as it was."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Inside, no module is in training mode and no configuration asks for a key-value cache.

    A block that runs twice would fill a cache twice.  Afterwards every module has the mode that it had by itself.
    Parts of a model may have configurations of their own: the decoder of T5 has a copy, in which the cache stays on.
    """
    modules = [module for model in models for module in model.modules()]
    training = [module for module in modules if module.training]
    configs = {id(config): config for module in modules for config in _configs(getattr(module, "config", None))}
    caching = [(config, config.use_cache) for config in configs.values()]
    for module in training:
        module.training = False  # not `eval()`, which a class may override to do more
    for config, _ in caching:
        config.use_cache = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for config, use_cache in caching:
            config.use_cache = use_cache


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Inside, nothing is run compiled, since compiled code runs past hooks; afterwards it is compiled anew.

    That is `model.compile()`, and forwards that `torch.compile` has made, on instances or of classes.
    """
    compiled = {module: module._compiled_call_impl for module in model.modules() if module._compiled_call_impl}
    for module in compiled:
        module._compiled_call_impl = None
    try:
        with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
            yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call
        if "torch._dynamo" in sys.modules:  # code that was compiled before knows nothing of hooks that are there now
            sys.modules["torch._dynamo"].reset()


def _configs(config: Any) -> Iterator[Any]:
    """A configuration and those inside of it, as of the text, vision and audio parts of a model, that name a cache."""
    if hasattr(config, "use_cache"):
        yield config
    for part in list(getattr(config, "__dict__", {}).values()):
        if hasattr(part, "to_dict") and hasattr(part, "model_type"):
            yield from _configs(part)
