"""The life of a training run, as the four moments in which a modifier may act while a model is trained.

    attach(training)                 before the optimizer is made: masks, attachments, parameters to learn
    for every batch:
        loss(training, forward)      after the model's forward: the loss in place of the one so far
    for every optimizer step:
        step(training)               just after the weights were updated, before anything reads them
    detach(training)                 at the end: the model is plain again, with the weights that will be saved

A modifier that acts in training returns a `Lifecycle` from `Modifier.training()`, a new one for each run.
Settings stay on the modifier, which is frozen; what changes from step to step lives in the lifecycle, and is in its
`state_dict`, so that a run that is killed goes on as if nothing had happened.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from attrs import define, field, frozen
from torch import Tensor, nn

from coldpress.stage import Stage


@define(eq=False)
class Training:
    """What lifecycles are handed.

    Attributes:
        model: that is trained.
        teacher: of distillation, in evaluation mode, whose parameters require no gradient; None where there is none.
        step: optimizer steps that are done; in `step`, the one just made is counted.
        num_steps: optimizer steps of the whole run; None where that is not known.
        epoch: passes over the data that are done, with their fraction; None where they are not counted.
        num_epochs: passes over the data of the whole run; None where that is not known.
        observed: names of modules whose outputs are kept in each forward, of the model and of the teacher.
        metrics: numbers that are logged beside the loss, such as a sparsity.
    """

    model: nn.Module
    teacher: nn.Module | None = None
    step: int = 0
    num_steps: int | None = None
    epoch: float | None = None
    num_epochs: float | None = None
    observed: set[str] = field(factory=set)
    metrics: dict[str, float] = field(factory=dict)

    def stage(self) -> Stage:
        """The whole model, whose layers a modifier claims by `self.layers(training.stage())`."""
        return Stage.whole(self.model)


@frozen(eq=False)
class Seen:
    """What a model made of a batch.

    Attributes:
        logits: of every token, [B, S, V].
        outputs: name to output of each module in `Training.observed`, its first tensor, [B, S, D].
    """

    logits: Tensor
    outputs: Mapping[str, Tensor]


@frozen(eq=False)
class Forward:
    """One forward of a model in training.

    Attributes:
        inputs: keyword arguments of the model, labels among them.
        student: what the model made of them.
        loss: so far, a scalar.
        num_items: labels of all batches of this optimizer step, by which a sum of losses is divided; None where the
            loss is a mean over this batch, which the loop divides itself.
        run_teacher: what the teacher makes of the same inputs, without gradients; it runs once a batch.
    """

    inputs: Mapping[str, Any]
    student: Seen
    loss: Tensor
    num_items: Tensor | int | None
    run_teacher: Callable[[], Seen]

    def counted(self) -> Tensor:
        """Which tokens have a label that their predecessor predicts, [B, S - 1] bool."""
        labels: Tensor = self.inputs["labels"]
        return labels[:, 1:] != -100

    def scaled(self, total: Tensor) -> Tensor:
        """The sum of a loss over the counted tokens as the part that this batch has in the loss of the step."""
        return total / (self.counted().sum().clamp(min=1) if self.num_items is None else self.num_items)


class Lifecycle:
    """Base of what modifiers do in training; a subclass overrides the moments in which it acts."""

    needs_teacher: ClassVar[bool] = False
    """A run without a teacher is refused."""

    def attach(self, training: Training) -> None:
        """Before the optimizer is made; parameters that are registered on modules here are trained too.

        Raises:
            ColdpressError: the model cannot be trained so; nothing is changed then.
        """

    def loss(self, training: Training, forward: Forward) -> Tensor:
        """The loss in place of `forward.loss`, a scalar."""
        return forward.loss

    def step(self, training: Training) -> None:
        """After an optimizer step; gradients are not recorded."""

    def detach(self, training: Training) -> None:
        """At the end, whatever happened; nothing of it may stay on the model."""

    def learned(self) -> list[nn.Parameter]:
        """Parameters that `attach` added, which the optimizer must have."""
        return []

    def state_dict(self) -> dict[str, Tensor]:
        """What cannot be found again in the weights, by names of its own; saved with each checkpoint of training."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` returned, after `attach`."""


def acts_on_loss(lifecycle: Lifecycle) -> bool:
    """Whether it changes the loss."""
    return type(lifecycle).loss is not Lifecycle.loss
