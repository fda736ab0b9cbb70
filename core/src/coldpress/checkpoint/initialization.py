"""Whether transformers can fill a model whose layers hold codes and have no `weight`.

Before it loads, transformers initializes what the files do not have.  Some classes (T5, SigLIP) reach there from a
module into its layers, `module.q.weight`, and end in an AttributeError where a layer keeps `weight_packed` instead.
"""

from collections.abc import Collection
from typing import Any

from coldpress.checkpoint.names import checkpoint_names
from coldpress.dataflow.empty import empty_copy


def initialization_reads_weights(model: Any, layers: Collection[str]) -> bool:
    """Whether the initialization that transformers has for a model's class fails where layers have no `weight`.

    It is tried, on a copy without data all of whose tensors count as loaded.

    Args:
        model: in memory or on the meta device; is not changed.  None is a model of which nothing is known.
        layers: names of those without a weight, in memory or on disk.
    """
    if not layers or not callable(getattr(model, "initialize_weights", None)):
        return False
    copy = empty_copy(model)
    for tensor in (*copy.parameters(), *copy.buffers()):
        tensor._is_hf_initialized = True
    if not _initializes(copy):
        return False  # and nothing is known
    names, modules = checkpoint_names(model), dict(copy.named_modules())
    for name in layers:
        home = names.in_memory(f"{name}.weight").removesuffix(".weight")
        if home in modules:  # experts of files may be in one tensor in memory
            modules[home]._parameters.pop("weight", None)
    return not _initializes(copy)


def _initializes(model: Any) -> bool:
    for module in model.modules():
        module._is_hf_initialized = False
    try:
        model.initialize_weights()
    except Exception:
        return False
    return True
