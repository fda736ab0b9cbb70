"""data_free: block by block, and nothing runs; for modifiers that look at weights only."""

from collections.abc import Iterator
from typing import ClassVar

from attrs import frozen

from coldpress.plugin import CalibrationError, Outline, Pass, Pipeline, Stage, State, partition


@frozen(kw_only=True, eq=False)
class DataFree(Pipeline):
    """The model's own parts, in order, without any calibration."""

    runs_batches: ClassVar[bool] = False

    def stages(self, state: State) -> Iterator[Stage]:
        """Yield prologue, blocks and epilogue."""
        yield from partition(state.model)

    def outline(self, state: State, *, divisible: bool = False) -> Outline:
        """The parts of the model; nothing runs."""
        return Outline(stages=tuple(partition(state.model)), forwards=0.0)

    def count(self, state: State) -> int:
        """As many as the model has parts."""
        return len(partition(state.model))

    def sweep(self, state: State, stage: Stage) -> Iterator[Pass]:
        """Refuse: there is nothing to run."""
        raise CalibrationError("the pipeline data_free runs no batches")
