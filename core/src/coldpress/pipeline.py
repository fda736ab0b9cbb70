"""Pipeline: how a model is cut into stages and how calibration batches travel through them."""

from collections.abc import Iterator
from typing import ClassVar

from attrs import frozen

from coldpress.stage import Stage
from coldpress.state import State


@frozen(kw_only=True, eq=False)
class Pipeline:
    """Base of all pipelines; their fields are their settings.

    Attributes:
        runs_batches: whether `sweep` runs anything; a recipe that needs data cannot use a pipeline that does not.
        shares_sweeps: whether all modifiers go over the stages together; if not, core asks for the stages once for each
            modifier, one after the other, and writes what the last of them leaves.
        compares: whether `sweep` can show what the original model's stages see, beside what is seen after compression.
    """

    runs_batches: ClassVar[bool] = True
    shares_sweeps: ClassVar[bool] = True
    compares: ClassVar[bool] = False

    def stages(self, state: State) -> Iterator[Stage]:
        """Yield the stages in the order in which the model runs them.

        A generator: when it is asked for the next stage, the one before is compressed, and it pushes every batch on
        through it.  It undoes whatever it did to the model when it ends or is closed.
        """
        raise NotImplementedError

    def count(self, state: State) -> int | None:
        """How many stages there will be, for a progress bar; None when nobody knows."""
        return None

    def parts(self, state: State, stage: Stage) -> Iterator[Stage]:
        """Yield the parts of a stage that are compressed one after the other; `sweep` is called for each of them.

        Together they are the stage, whose name and index they have; the base yields the stage itself.
        Core does not ask where a modifier moves the signal between layers, nor where the stage has experts.
        A generator: when it is asked for the next part, the one before is compressed.
        """
        yield stage

    def sweep(self, state: State, stage: Stage) -> Iterator[int]:
        """Run the stage once on every batch; yield the index of each batch just after the stage ran on it.

        What counts is that every observed layer of it is called with what it sees in the batch.
        Where `state.compares`, it is run first on what the original model has there, which yields ~index.
        """
        raise NotImplementedError

    def needs_sweep(self, state: State, stage: Stage) -> bool:
        """Whether the stage must be swept, to its end, before it changes, also if nobody looks at it.

        For pipelines that hand on what the sweep puts out; the base does not.
        """
        return False
