"""Modes of torch that a caller may be in, and that a run must not be in."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def plain_modes() -> Iterator[None]:
    """Leave inference mode, whose tensors cannot be changed in place, autocast, and a default device without data."""
    on_meta = torch.get_default_device().type == "meta"  # inside of `with torch.device("meta")`
    with (
        torch.inference_mode(False),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        torch.device("cpu") if on_meta else nullcontext(),
    ):
        yield
