"""Pipeline: how a model is cut into stages and how calibration batches travel through them."""

from collections.abc import Collection, Iterator
from typing import ClassVar

from attrs import frozen

from coldpress.errors import CalibrationError, must_implement
from coldpress.planned import LossGradient, ReverseStep
from coldpress.stage import Call, Pass, Stage
from coldpress.state import State


@frozen(kw_only=True, eq=False)
class Outline:
    """What a pipeline will do with a model, as far as that is known before a batch runs; plans are made of it.

    Attributes:
        stages: in the order in which they run.
        forwards: how often a batch runs through a stage whose layers are observed, to calibrate it and to go on.
        in_parts: batches are suspended inside of a stage, whose layers are calibrated one input after the other.
        keeps_outputs: outputs of the original stage are kept beside what it is called with.
        on_disk: activations between stages are in files.
    """

    stages: tuple[Stage, ...]
    forwards: float = 1.0
    in_parts: bool = False
    keeps_outputs: bool = False
    on_disk: bool = False


@frozen(kw_only=True, eq=False)
class Pipeline:
    """Base of all pipelines; their fields are their settings.

    Attributes:
        runs_batches: whether `sweep` runs anything; a recipe that needs data cannot use a pipeline that does not.
        shares_sweeps: whether all modifiers go over the stages together; if not, core asks for the stages once for each
            modifier, one after the other, and writes what the last of them leaves.
        runs_original: whether `sweep` can also run stages on the outputs of the original blocks before them.
        holds_calls: whether `calls` yields the calls of the stages that hold a block.
        runs_backwards: whether there is a `reverse_sweep`.
    """

    runs_batches: ClassVar[bool] = True
    shares_sweeps: ClassVar[bool] = True
    runs_original: ClassVar[bool] = False
    holds_calls: ClassVar[bool] = False
    runs_backwards: ClassVar[bool] = False

    def stages(self, state: State) -> Iterator[Stage]:
        """Yield the stages in the order in which the model runs them.

        A generator: when it is asked for the next stage, the one before is compressed, and it passes every batch on
        through it.  It undoes whatever it did to the model when it ends or is closed.
        """
        raise must_implement(self, "stages(state)")

    def outline(self, state: State, *, divisible: bool = False) -> Outline:
        """What it will do, without running anything; one stage of the whole model, unless overridden.

        Args:
            state: before the run; weights may be on the meta device, and `state.sweep` says what is observed.
            divisible: core may ask for `parts`.
        """
        return Outline(stages=(Stage.whole(state.model),))

    def count(self, state: State) -> int | None:
        """How many stages there will be, for a progress bar; None when that is not known."""
        return None

    def parts(self, state: State, stage: Stage) -> Iterator[Stage]:
        """Yield the parts of a stage that are compressed one after the other; `sweep` is called for each of them.

        Together they are the stage, whose name and index they have; the base yields the stage itself.
        Core does not ask where a modifier needs the stage whole, or transforms it, nor where the stage has experts.
        A generator: when it is asked for the next part, the one before is compressed.
        """
        yield stage

    def sweep(self, state: State, stage: Stage) -> Iterator[Pass]:
        """Run the stage once on every batch; yield a `Pass` just after the stage ran on it.

        What counts is that every observed layer of it is called with what it sees in the batch.
        Where `state.sweep.original_inputs`, each batch first runs on what the original blocks before the stage output.
        """
        raise must_implement(self, "sweep(state, stage)")

    def needs_sweep(self, state: State, stage: Stage) -> bool:
        """Whether the stage must be swept, to its end, before it changes, also if no statistic was requested.

        For pipelines that pass on the outputs of the sweep; the base does not.
        """
        return False

    def calls(
        self, state: State, stage: Stage, *, original: bool = False, batches: Collection[int] | None = None
    ) -> Iterator[Call]:
        """Yield the call of the stage for every batch that reaches it, in the order of the batches.

        Its tensors are where the model is until the next one is asked for, and may then be offloaded again.

        Args:
            state: of the run.
            stage: that is compressed now, whole.
            original: the call with what the original blocks before the stage output.
            batches: indices of the batches that are wanted; None for all.

        Raises:
            CalibrationError: there are no calls of this stage.
        """
        raise CalibrationError(f"the pipeline {type(self).__name__} holds no calls of {stage.name}")

    def reverse_sweep(self, state: State, loss: LossGradient) -> Iterator[ReverseStep]:
        """Yield the stages in the order in which the model runs them, and then those to replay, from the last on.

        On the way forward every batch runs with what stages are called with kept, offloaded as activations are.
        On the way back a stage is replayed with autograd: hooks on its layers see the gradient of the loss by their
        outputs, and the gradient of its inputs goes to the stages before it.  No weight has a gradient.
        A generator: when it is asked for the next step, the stage of the one before is no longer needed.

        Args:
            state: of the run, before its first stage.
            loss: what the gradient of the logits is.
        """
        raise CalibrationError(f"the pipeline {type(self).__name__} cannot run backwards")
