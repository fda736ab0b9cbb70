"""What is settled before a stage runs: the plan of layers, what a pass is for, and which hook is running."""

from collections.abc import Collection, Iterator
from typing import Any, Protocol

from attrs import frozen
from torch import Tensor

from coldpress.errors import CalibrationError
from coldpress.modifier import TRANSFORMS, Modifier
from coldpress.schemes import Scheme
from coldpress.stage import Call, Layer, Pass, Stage


class CallSource(Protocol):
    """Where the calls of stages come from: `Pipeline.calls`, of the run's pipeline."""

    def __call__(self, stage: Stage, *, original: bool, batches: Collection[int] | None) -> Iterator[Call]:
        """The call of the stage by each batch."""


def no_calls(stage: Stage, *, original: bool, batches: Collection[int] | None) -> Iterator[Call]:
    """Of a pass that runs no batch."""
    raise CalibrationError(f"no batch runs, so {stage.name} is not called")


def unknown_nbytes(layer: Layer, scheme: Scheme) -> int:
    """Of a run that was not planned."""
    raise CalibrationError(f"no run is planned, so what {layer.name} takes on disk is not known")


class LossGradient(Protocol):
    """What the reverse sweep begins with: the gradient of the model's loss by its logits."""

    def __call__(self, index: int, output: Any) -> tuple[Tensor, Tensor]:
        """Of the model's output for a batch: its logits, [B, S, V], in the graph, and the gradient by them."""


@frozen(eq=False)
class ReverseStep:
    """One step of a reverse sweep.

    Attributes:
        stage: whose weights are needed until the next step is asked for.
        passes: of a stage that is replayed: runs it batch by batch with autograd and passes the gradient of its inputs
            to the stages before it; None on the way forward, where nothing is read.
    """

    stage: Stage
    passes: Iterator[Pass] | None = None


@frozen(kw_only=True, eq=False)
class Sweep:
    """What a pass over the stages is for; set by core, read by pipelines.

    Attributes:
        observed: names of the modules whose inputs, or whose attention's, are read; what comes after the last of them
            need not run.
        propagated_error: whether a modifier calibrates on activations from compressed blocks, not from original ones.
        original_inputs: whether a modifier requests statistics of inputs in the original model.
        gradients: whether a modifier runs calls with autograd.
    """

    observed: frozenset[str] = frozenset()
    propagated_error: bool = True
    original_inputs: bool = False
    gradients: bool = False


@frozen(eq=False)
class Planned:
    """What will become of one layer.

    Attributes:
        quantizer: the modifier of the recipe that quantizes it.
        scheme: how.
    """

    quantizer: Modifier
    scheme: Scheme


@frozen(eq=False)
class Running:
    """The hook that is running.

    Attributes:
        modifier: whose.
        hook: its name.
        stage: that is compressed; the whole model for hooks of the whole run.
    """

    modifier: Modifier
    hook: str
    stage: Stage

    def __str__(self) -> str:
        return f"{type(self.modifier).__name__}.{self.hook} at {self.stage.name}"

    def may_change_weights(self) -> bool:
        """Whether weights may be changed in this hook."""
        return self.hook == "finalize" or (self.hook == "initialize" and TRANSFORMS in self.modifier.traits)
