"""OutputDistillationModifier: settings and wiring of distillation."""

from typing import Literal

from attrs import Attribute, field, frozen
from attrs.validators import ge, gt, optional
from torch import Tensor

from coldpress.plugin import (
    Forward,
    Layer,
    Lifecycle,
    ModelError,
    Modifier,
    Needs,
    SchemeError,
    Stage,
    TargetError,
    Training,
    matches_name,
)
from coldpress_distillation.algorithm import kl_divergence, square_head


def _targets(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


@frozen(kw_only=True, eq=False)
class OutputDistillationModifier(Modifier):
    """Train a model towards a teacher: its predictions, or what modules inside of it compute.

    The loss becomes `orig_scale` times what it was, plus `distill_scale` times the comparison, over tokens that have
    a label.  Several in one recipe add up, each to the loss of those before it.

    Attributes:
        targets: modules whose outputs are compared, exact names, `re:` patterns or class names, such as
            `LlamaDecoderLayer`; none compares logits.
        comparison: `kl_divergence` of logits, or `square_head` of hidden states.
        orig_scale: of the loss so far; 0 trains towards the teacher alone.
        distill_scale: of the comparison.
        temperature: of both softmaxes, for logits.
        top_k: logits of the teacher that are compared one by one, the most likely; all others are one class.  None
            compares all.
        layer_weights: of the modules, in model order; None weighs each with 1 (SquareHead sums over layers).
    """

    targets: list[str] = field(factory=list, converter=_targets)
    comparison: Literal["kl_divergence", "square_head"] = field(default="kl_divergence")
    orig_scale: float = field(default=1.0, validator=ge(0))
    distill_scale: float = field(default=1.0, validator=gt(0))
    temperature: float = field(default=1.0, validator=gt(0))
    top_k: int | None = field(default=None, validator=optional(ge(1)))
    layer_weights: list[float] | None = None

    @comparison.validator
    def _check_comparison(self, attribute: "Attribute[str]", value: str) -> None:
        if value == "square_head" and not self.targets:
            raise SchemeError("square_head compares hidden states: name modules in targets, such as the decoder layers")
        if value == "kl_divergence" and self.targets:
            raise SchemeError(
                "kl_divergence compares logits, which have no targets: leave them out, or take square_head"
            )

    def needs(self) -> Needs:
        """Training."""
        return Needs(training=True)

    def layers(self, stage: Stage) -> list[Layer]:
        """None: no layer is changed by it, but all of them by what they are trained towards."""
        return []

    def patterns(self) -> list[str]:
        """None that mean layers."""
        return []

    def training(self) -> Lifecycle:
        """Compare with the teacher at each forward."""
        return Distillation(self)


class Distillation(Lifecycle):
    """The loss of distillation.

    Args:
        modifier: its settings.
    """

    needs_teacher = True

    def __init__(self, modifier: OutputDistillationModifier) -> None:
        self._modifier = modifier
        self._modules: list[str] = []

    def attach(self, training: Training) -> None:
        """Have the modules observed.

        Raises:
            TargetError: a target matches no module of the model, or the teacher has no such module.
        """
        for pattern in self._modifier.targets:
            found = [
                name
                for name, module in training.model.named_modules()
                if name and (matches_name(pattern, name) or pattern in {kind.__name__ for kind in type(module).__mro__})
            ]
            if not found:
                raise TargetError(f"OutputDistillationModifier: the target {pattern!r} matches no module of the model")
            self._modules += [name for name in found if name not in self._modules]
        assert training.teacher is not None
        missing = set(self._modules) - {name for name, _ in training.teacher.named_modules()}
        if missing:
            raise TargetError(f"the teacher has no module {min(missing)!r}: its hidden states cannot be compared")
        weights = self._modifier.layer_weights
        if weights is not None and len(weights) != len(self._modules):
            raise TargetError(
                f"layer_weights has {len(weights)} numbers, and targets match {len(self._modules)} modules"
            )
        training.observed.update(self._modules)

    def loss(self, training: Training, forward: Forward) -> Tensor:
        """The loss so far and the comparison, each with its scale."""
        modifier = self._modifier
        term = self._hidden(forward) if self._modules else self._logits(forward)
        training.metrics["distillation_loss"] = float(term.detach() * _batches(forward))
        return modifier.orig_scale * forward.loss + modifier.distill_scale * term.to(forward.loss)

    def detach(self, training: Training) -> None:
        """Observe no more."""
        training.observed.difference_update(self._modules)
        self._modules = []

    def _logits(self, forward: Forward) -> Tensor:
        counted, modifier = forward.counted(), self._modifier
        student, teacher = (seen.logits[:, :-1][counted] for seen in (forward.student, forward.run_teacher()))
        return forward.scaled(kl_divergence(student, teacher, temperature=modifier.temperature, top_k=modifier.top_k))

    def _hidden(self, forward: Forward) -> Tensor:
        counted, teacher = forward.counted(), forward.run_teacher()
        total = forward.loss.new_zeros(())
        weights = self._modifier.layer_weights or [1.0] * len(self._modules)
        for name, weight in zip(self._modules, weights, strict=True):
            one, other = (seen.outputs[name] for seen in (forward.student, teacher))
            if one.shape != other.shape:
                raise ModelError(f"{name} has outputs {tuple(one.shape)}, and in the teacher {tuple(other.shape)}")
            if not one.requires_grad:
                raise ModelError(
                    f"no gradient reaches the output of {name}: with gradient checkpointing pass "
                    "gradient_checkpointing_kwargs={'use_reentrant': False}"
                )
            total = total + weight * square_head(one[:, :-1][counted], other[:, :-1][counted])
        return forward.scaled(total * counted.sum())  # a mean over this batch, with its share in the step


def _batches(forward: Forward) -> Tensor | float:
    """How many batches like this one a step has, by its labels, so that what is logged is a mean over tokens."""
    return 1.0 if forward.num_items is None else forward.num_items / forward.counted().sum().clamp(min=1)
