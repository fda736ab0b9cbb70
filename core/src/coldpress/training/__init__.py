"""Training: modifiers that act while a model is trained, in any loop; the Trainer is that of transformers."""

from typing import TYPE_CHECKING

from coldpress.lazy import lazy_names

if TYPE_CHECKING:
    from coldpress.training.adapters import requantize_merged
    from coldpress.training.callback import CompressionCallback
    from coldpress.training.lifecycles import Lifecycles

__all__ = ["CompressionCallback", "Lifecycles", "requantize_merged"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "training.adapters": ("requantize_merged",),
        "training.callback": ("CompressionCallback",),
        "training.lifecycles": ("Lifecycles",),
    },
)
