"""basic: the whole model is one stage, and every batch runs through all of it."""

from collections.abc import Iterator

from attrs import frozen

from coldpress.plugin import Pipeline, Stage, State
from coldpress_pipelines.walking import batch_named, placed


@frozen(kw_only=True, eq=False)
class Basic(Pipeline):
    """One stage: the model as it is, with the original weights, while the data are read.

    Errors are not propagated: no layer sees what quantizing an earlier one does to its inputs.
    """

    def stages(self, state: State) -> Iterator[Stage]:
        """Yield the model."""
        yield Stage("model", 0, dict(state.model.named_modules()))

    def count(self, state: State) -> int:
        """One."""
        return 1

    def sweep(self, state: State, stage: Stage) -> Iterator[int]:
        """Run the model on every batch, as far as somebody looks."""
        for index, batch in enumerate(state.batches):
            with batch_named(index, batch):
                state.model(**placed(batch, state.model))
            yield index
