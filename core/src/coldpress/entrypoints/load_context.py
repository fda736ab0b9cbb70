"""load_context: scripts for llm-compressor load their model inside of it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

_OFFLOADED = ("auto_offload", "disk")


@contextmanager
def load_context(model_cls: Any = None) -> Iterator[None]:
    """Inside, `from_pretrained` of a class takes the device maps `auto_offload` and `disk` of llm-compressor.

        with load_context():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="auto_offload")

    The weights are read into CPU memory.  A model that does not fit there is streamed: pass its folder to `oneshot`,
    with an `output_dir`, and load nothing.  Experts need no preparation: the run makes linear layers of them.

    Args:
        model_cls: the class that loads; None for `transformers.AutoModelForCausalLM`.
    """
    cls = model_cls or _default_class()
    own, loads = vars(cls).get("from_pretrained"), cls.from_pretrained

    def from_pretrained(*args: Any, device_map: Any = None, **settings: Any) -> Any:
        if device_map == "disk":
            log.warning(
                "device_map='disk': weights are read into CPU memory; where they do not fit, pass the model's folder "
                "and an output_dir to oneshot instead, and they are read stage by stage"
            )
        if device_map is not None and device_map not in _OFFLOADED:
            settings["device_map"] = device_map
        return loads(*args, **settings)

    cls.from_pretrained = from_pretrained
    try:
        yield
    finally:
        if own is None:
            del cls.from_pretrained
        else:
            cls.from_pretrained = own


def _default_class() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM
