"""basic: the whole model is one stage, and every batch runs through all of it."""

from collections.abc import Collection, Iterator
from typing import ClassVar

from attrs import frozen

from coldpress.plugin import Call, LossGradient, Outline, Pass, Pipeline, ReverseStep, Stage, State
from coldpress_pipelines.walking import batch_named, model_calls, placed, whole_backwards


@frozen(kw_only=True, eq=False)
class Basic(Pipeline):
    """One stage: the model as it is, with the original weights, while the data are read.

    Errors are not propagated: no layer sees what quantizing an earlier one does to its inputs.
    """

    holds_calls: ClassVar[bool] = True
    runs_backwards: ClassVar[bool] = True

    def stages(self, state: State) -> Iterator[Stage]:
        """Yield the model."""
        yield Stage.whole(state.model)

    def outline(self, state: State, *, divisible: bool = False) -> Outline:
        """One stage, whose layers see every batch once."""
        return Outline(stages=(Stage.whole(state.model),))

    def count(self, state: State) -> int:
        """One."""
        return 1

    def sweep(self, state: State, stage: Stage) -> Iterator[Pass]:
        """Run the model on every batch, as far as its layers are observed."""
        for index, batch in state.share.batches(state.batches):
            with batch_named(index, batch):
                state.model(**placed(batch, state.model))
            yield Pass(index)

    def calls(
        self, state: State, stage: Stage, *, original: bool = False, batches: Collection[int] | None = None
    ) -> Iterator[Call]:
        """Yield what the model is called with: the original's outputs before it are none."""
        yield from model_calls(state, batches)

    def reverse_sweep(self, state: State, loss: LossGradient) -> Iterator[ReverseStep]:
        """Yield the model, which runs forwards and backwards as a whole."""
        yield ReverseStep(Stage.whole(state.model), whole_backwards(state, loss))
