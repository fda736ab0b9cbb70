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
    """

    runs_batches: ClassVar[bool] = True

    def stages(self, state: State) -> Iterator[Stage]:
        """Yield the stages in the order in which the model runs them.

        A generator: when it is asked for the next stage, the one before is compressed, and it pushes every batch on
        through it.  It undoes whatever it did to the model when it ends or is closed.
        """
        raise NotImplementedError

    def sweep(self, state: State, stage: Stage) -> Iterator[int]:
        """Run the stage once on every batch; yield the index of each batch just after the stage ran on it."""
        raise NotImplementedError
