"""What pipelines that go block by block have in common."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from coldpress.plugin import CalibrationError, Call, LossGradient, Pass, Stage, State, StopForward

HOW = "sequential_targets=[...]: a class such as 'LlamaDecoderLayer', names, or 're:' and a pattern"


def as_list(value: str | Iterable[str] | None) -> list[str] | None:
    """Targets, as a list; one is understood."""
    return [value] if isinstance(value, str) else None if value is None else list(value)


@contextmanager
def batch_named(index: int, batch: Mapping[str, Any]) -> Iterator[None]:
    """Let `StopForward` pass for an end, and say which batch the model refuses."""
    try:
        yield
    except StopForward:
        pass
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        shapes = {name: tuple(getattr(value, "shape", ())) for name, value in batch.items()}
        raise CalibrationError(
            f"the model refuses batch {index} ({shapes}): {type(error).__name__}: {error}{_range_of_ids(batch, error)}"
        ) from error


def _range_of_ids(batch: Mapping[str, Any], error: Exception) -> str:
    """Which token ids a batch has, where a row of an embedding was not found."""
    ids = batch.get("input_ids")
    if not isinstance(error, IndexError) or not isinstance(ids, Tensor) or not ids.numel():
        return ""
    return (
        f"; its input_ids go from {int(ids.min())} to {int(ids.max())} at up to {ids.shape[-1]} positions: see that "
        "they are those of this model's tokenizer, and no longer than it takes"
    )


def placed(batch: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The batch with its tensors on the device of the model; those that are there are not copied."""
    weights = (*model.parameters(), *model.buffers())
    device = next((tensor.device for tensor in weights if not tensor.is_meta), torch.device("cpu"))
    placed: dict[str, Any] = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, dict(batch))
    return placed


def model_calls(state: State, batches: Collection[int] | None) -> Iterator[Call]:
    """What the whole model is called with, batch by batch."""
    for index, batch in state.share.batches(state.batches):
        if batches is None or index in batches:
            yield Call(index, (), placed(batch, state.model), state.model)


def whole_backwards(state: State, loss: LossGradient) -> Iterator[Pass]:
    """Run every batch through the whole model and back, with autograd."""
    for index, batch in enumerate(state.batches):
        with batch_named(index, batch), torch.enable_grad():
            logits, gradient = loss(index, state.model(**placed(batch, state.model)))
            torch.autograd.backward([logits], [gradient])
        yield Pass(index)


def matters(parts: Mapping[str, Stage], state: State) -> bool:
    """Whether any stage that is still to come is observed."""
    return any(not state.sweep.observed.isdisjoint(part.modules) for part in parts.values())


def refuse_unreached(blocks: Collection[str], parts: Mapping[str, Stage], state: State) -> None:
    """Refuse blocks that no batch runs, where layers are still to be observed; attention alone may be left.

    Args:
        blocks: their names.
        parts: stages that are still to come.
        state: of the run.

    Raises:
        CalibrationError: names the blocks.
    """
    if any(layer.name in state.sweep.observed for part in parts.values() for layer in part.every_layer):
        raise CalibrationError(
            f"no calibration batch runs {', '.join(blocks)}; ignore their layers, or say with sequential_targets "
            "which blocks run"
        )
