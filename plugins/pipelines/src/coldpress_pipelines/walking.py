"""What pipelines that go block by block have in common."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from coldpress import CalibrationError, Enough, Stage, State


@contextmanager
def batch_named(index: int) -> Iterator[None]:
    """Let `Enough` pass for an end, and say which batch the model refuses."""
    try:
        yield
    except Enough:
        pass
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise CalibrationError(f"the model refuses batch {index}: {error}") from error


def matters(parts: Mapping[str, Stage], state: State) -> bool:
    """Whether any stage that is still to come is observed."""
    return any(layer.name in state.observed for part in parts.values() for layer in part.every_layer)


def refuse_gaps(parts: Mapping[str, Stage], blocks: Collection[str], state: State) -> None:
    """Refuse observed layers between two lists of blocks, which are run while nobody observes them.

    Raises:
        CalibrationError: names them.
    """
    for name, part in parts.items():
        if name in blocks or name in ("prologue", "epilogue", "model"):
            continue
        lost = [layer.name for layer in part.every_layer if layer.name in state.observed]
        if lost:
            raise CalibrationError(
                f"{', '.join(lost)}: between two lists of blocks, where nothing is observed block by block; "
                "ignore these layers, name one of the lists in sequential_targets, or use the pipeline basic"
            )
