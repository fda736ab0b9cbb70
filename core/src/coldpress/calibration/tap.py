"""The tap: records what layers are called with; the only hooks that a run puts on a model, always removed."""

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from coldpress.errors import CalibrationError, NumericsError
from coldpress.stage import Batch, Layer


class Enough(Exception):  # noqa: N818 - not an error: a forward ends early because nobody reads the rest
    """Raised by the tap inside a forward, when every observed layer of the stage has been called."""


class Tap:
    """Context in which the inputs of layers are recorded, batch by batch.

    Args:
        layers: whose inputs are wanted.
    """

    def __init__(self, layers: Iterable[Layer]) -> None:
        self._layers = tuple(layers)
        self._seen: dict[str, list[Tensor]] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "Tap":
        for layer in self._layers:
            self._handles.append(layer.module.register_forward_pre_hook(self._recorder(layer.name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def collect(self, index: int, arguments: Mapping[str, Any]) -> Batch:
        """What the layers saw since the last call.

        Args:
            index: of the batch, from 0.
            arguments: what the model was called with; its `attention_mask`, [B, S], tells padding.

        Raises:
            NumericsError: an input has NaN or Inf; layer and batch are named.
        """
        mask = arguments.get("attention_mask")
        inputs = {name: torch.cat([_tokens(x, mask) for x in calls]) for name, calls in self._seen.items()}
        self._seen.clear()
        for name, x in inputs.items():
            if not torch.isfinite(x).all():
                raise NumericsError(f"the input of {name} has NaN or Inf in batch {index}; nothing was written")
        return Batch(index, inputs)

    def _recorder(self, name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...]) -> None:
            if not args or not isinstance(args[0], Tensor):
                raise CalibrationError(f"{name} is not called with a tensor as its first argument")
            self._seen.setdefault(name, []).append(args[0].detach())

        return record


def _tokens(x: Tensor, mask: Tensor | None) -> Tensor:
    """The tokens of a layer's input without padding, [B, S, I] -> [T, I]; other leading shapes are only flattened."""
    if not x.is_floating_point():  # an embedding is called with token ids
        x = x.unsqueeze(-1)
    if mask is not None and mask.ndim == 2 and x.shape[:2] == mask.shape and not bool(mask.all()):
        return x[mask.bool().to(x.device)]
    return x.flatten(0, -2)
