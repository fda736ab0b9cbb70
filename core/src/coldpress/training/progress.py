"""How long a training run is, and whether its settings can be meant."""

from math import isfinite
from typing import Any


def num_epochs_of(args: Any, state: Any, dataloader: Any) -> float | None:
    """Passes over the data of the whole run, with their fraction; None where the data have no length.

    Args:
        args: of a Trainer.
        state: of a Trainer, which knows its steps.
        dataloader: of a Trainer.
    """
    try:
        batches = len(dataloader)
    except TypeError:
        return None
    each = max(batches // args.gradient_accumulation_steps + bool(batches % args.gradient_accumulation_steps), 1)
    return float(state.max_steps / each)


def learning_rate_problem(value: Any) -> str | None:
    """Why a learning rate cannot be meant; None where it can."""
    if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value >= 0:
        return None
    return f"learning_rate must be a finite number that is not negative, got {value!r}"
