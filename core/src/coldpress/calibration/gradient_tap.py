"""The gradient tap: records the gradient of the loss by the outputs of layers, by hooks that are always removed."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from coldpress.calibration.batch import mask_for, token_masks
from coldpress.calibration.tap import UNPLACED, TokenRows, refuse_unplaced, rows_of
from coldpress.errors import CalibrationError, NumericsError
from coldpress.numerics import is_finite
from coldpress.stage import Layer
from coldpress.statistic import Tokens


@frozen(eq=False)
class _Seen:
    """The gradient by the output of one call, as autograd has it."""

    name: str
    call: int
    rows: TokenRows | None
    gradient: Tensor


class GradientTap:
    """Context in which the gradients of the loss by the outputs of layers are recorded, batch by batch.

    Args:
        layers: whose outputs.
    """

    def __init__(self, layers: Iterable[Layer]) -> None:
        self._layers = tuple(layers)
        self._calls: Counter[str] = Counter()
        self._seen: list[_Seen] = []
        self._hooks = ExitStack()

    def __enter__(self) -> "GradientTap":
        for layer in self._layers:
            self._hooks.callback(layer.module.register_forward_hook(self._recorder(layer.name)).remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()
        self._seen.clear()

    def collect(self, index: int, batch: Mapping[str, Any]) -> Iterator[tuple[str, Tensor, Tokens]]:
        """What was recorded since the last call: name of the layer, gradient [T, O], and which tokens these are.

        Args:
            index: of the batch, from 0.
            batch: what the model was called with; `token_masks` says which of its tokens count.

        Raises:
            NumericsError: a gradient has NaN or Inf; layer and batch are named.
        """
        seen, self._seen = sorted(self._seen, key=lambda one: (one.name, one.call)), []
        self._calls.clear()
        for one in seen:
            gradient, places = _counted(one, token_masks(batch))
            if not is_finite(gradient):
                raise NumericsError(
                    f"the gradient of the loss by the output of {one.name} has NaN or Inf in batch {index}: weights or "
                    "data are not sound, or their dtype is too small (use bfloat16 or float32); nothing was written"
                )
            if len(gradient):
                yield one.name, gradient, Tokens(index, one.call, places)

    def _recorder(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if not torch.is_grad_enabled():
                return None
            if not isinstance(output, Tensor):
                raise CalibrationError(f"{name} returns no tensor, so no gradient by it is known")
            call, rows = self._calls[name], rows_of(args[0]) if args else None
            self._calls[name] += 1
            root = output if output.requires_grad else output.detach().requires_grad_()  # nothing before needs one
            root.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: self._seen.append(_Seen(name, call, rows, gradient.detach()))
            )
            return None if root is output else root * 1  # a leaf could not be changed in place

        return record


def _counted(seen: _Seen, masks: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
    """The gradient of the tokens that count, [T, O], and where they are among all; None where all count, in order."""
    gradient = seen.gradient
    refuse_unplaced(seen.name, seen.rows, masks)
    if seen.rows is UNPLACED:
        return gradient, None
    if seen.rows is not None:
        places = seen.rows.places
        mask = mask_for(gradient.new_empty(seen.rows.total, 0), masks)
        if mask is None:
            return gradient, places
        inside = mask.flatten().to(gradient.device)[places]
        return gradient[inside], places[inside]
    mask = mask_for(gradient, masks)
    if mask is None:
        return gradient.flatten(0, -2) if gradient.ndim > 1 else gradient[None], None
    mask = mask.to(gradient.device)
    gradient = gradient[mask] if gradient.ndim > 2 else gradient[mask.flatten()]
    return gradient.flatten(0, -2), mask.flatten().nonzero()[:, 0]
