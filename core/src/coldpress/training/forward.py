"""What happens at each forward of a model in training: its loss is looked at, and modifiers may replace it.

A hook on the model does it, so it is the same in a Trainer, in one of TRL and in a loop of one's own: whoever calls the
model with labels and reads `loss` from its output gets the loss that the modifiers make of it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from attrs import evolve
from torch import Tensor, nn

from coldpress.errors import ModelError, NumericsError
from coldpress.lifecycle import Forward, Lifecycle, Seen, Training, acts_on_loss
from coldpress.models.evaluating import evaluating
from coldpress.stage import first_tensor

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]
_NOT_FOR_TEACHERS = ("labels", "num_items_in_batch", "use_cache")


class ForwardHook:
    """The hook on a model in training, and those on modules inside of it whose outputs are observed.

    Args:
        training: of the run.
        lifecycles: in recipe order.
    """

    def __init__(self, training: Training, lifecycles: Sequence[Lifecycle]) -> None:
        self._training, self._lifecycles = training, [one for one in lifecycles if acts_on_loss(one)]
        self._outputs: dict[str, Tensor] = {}
        self._stack = ExitStack()
        self._batch, self._searching = 0, False
        self._pending: tuple[tuple[Any, ...], dict[str, Any], Any] | None = None

    def install(self) -> None:
        """Put the hooks on the model."""
        model = self._training.model
        self._stack.enter_context(_observing(model, self._training.observed, self._outputs))
        self._stack.callback(model.register_forward_hook(self._after, with_kwargs=True).remove)

    def remove(self) -> None:
        """Take them off."""
        self._stack.close()

    def begin_step(self) -> None:
        """Count batches from the first of an optimizer step."""
        self._batch = 0

    def _after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not model.training or not torch.is_grad_enabled() or self._searching:
            return output
        loss = _loss_of(output)
        if loss is None:
            self._pending = args, kwargs, output
            return output
        self._pending = None
        loss = self._changed(args, kwargs, output, loss)
        return _with_loss(output, loss) if self._lifecycles else output

    def loss(self, output: Any, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
        """The loss of the last batch, on which the model was called without labels, as the model computes it.

        Args:
            output: of the model, with logits.
            labels: of the batch, [B, S].
            num_items: as in `Forward`.
        """
        if self._pending is None:
            raise ModelError("there is no forward in training whose loss is to be computed")
        args, kwargs, _ = self._pending
        self._pending = None
        model: Any = self._training.model
        more = {} if num_items is None else {"num_items_in_batch": num_items}
        own = model.loss_function(
            logits=output.logits, labels=labels, vocab_size=model.config.get_text_config().vocab_size, **more
        )
        return self._changed(args, {**kwargs, "labels": labels, **more}, output, own)

    def check_loss(self) -> None:
        """Refuse a step whose loss no modifier has seen.

        Raises:
            ModelError: the loop computes it from the logits.
        """
        if self._pending is not None and self._lifecycles:
            raise ModelError(
                "the model is called without labels, so its loss is computed somewhere else, where modifiers do not "
                "change it: let rows have labels, or pass compute_loss_func=callback.loss to the Trainer"
            )

    def _changed(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, loss: Tensor) -> Tensor:
        """What the modifiers make of a loss."""
        model = self._training.model
        self._check(model, args, kwargs, loss)
        forward = self._forward(args, kwargs, output, loss) if self._lifecycles else None
        for lifecycle in self._lifecycles:
            assert forward is not None
            loss = lifecycle.loss(self._training, evolve(forward, loss=loss))
            self._check(model, args, kwargs, loss, by=type(lifecycle).__name__)
        self._batch += 1
        self._outputs.clear()
        return loss

    def _forward(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, loss: Tensor) -> Forward:
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            raise ModelError(
                f"a {type(self._training.model).__name__} returns a loss and no logits in training, a fused loss: "
                "Liger's can be switched off; TRL's SFTTrainer takes compute_loss_func=callback.loss"
            )
        inputs = {**dict(zip(("input_ids",), args, strict=False)), **kwargs}
        return Forward(
            inputs=inputs,
            student=Seen(logits, dict(self._outputs)),
            loss=loss,
            num_items=inputs.get("num_items_in_batch"),
            run_teacher=_once(lambda: run_teacher(self._training, inputs, logits)),
        )

    def _check(self, model: nn.Module, args: Any, kwargs: Any, loss: Tensor, by: str | None = None) -> None:
        """Refuse a loss that is NaN or infinite, where it first is."""
        if bool(torch.isfinite(loss.detach()).all()):
            return
        self._searching = True
        try:
            found = first_not_finite(model, args, kwargs)
        finally:
            self._searching = False
        where = f"made by {by}" if by is not None and found is None else f"first in {found or 'the loss itself'}"
        raise NumericsError(
            f"the loss is {float(loss.detach())} at step {self._training.step + 1}, batch {self._batch + 1} of it, "
            f"{where}: lower learning_rate, set max_grad_norm, or look at the data of this batch"
        )


def run_teacher(training: Training, inputs: Mapping[str, Any], logits: Tensor) -> Seen:
    """What the teacher makes of the inputs, on the device and in the place of the student's outputs.

    Args:
        training: with a teacher.
        inputs: of the student.
        logits: of the student, [B, S, V].

    Raises:
        ModelError: the teacher has another vocabulary.
    """
    teacher = training.teacher
    assert teacher is not None
    device = next(teacher.parameters()).device
    given = {name: value for name, value in inputs.items() if name not in _NOT_FOR_TEACHERS}
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in given.items()}
    seen: dict[str, Tensor] = {}
    with torch.no_grad(), evaluating(teacher), _observing(teacher, training.observed, seen):
        found = teacher(**moved, use_cache=False).logits
    if found.shape != logits.shape:
        raise ModelError(
            f"the teacher gives logits of the shape {tuple(found.shape)}, and the model {tuple(logits.shape)}: "
            "distillation needs one vocabulary"
        )
    return Seen(found.to(logits.device), {name: value.to(logits.device) for name, value in seen.items()})


def first_not_finite(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """The first module whose weights or output hold NaN or Inf when the model is called so; None where none does."""
    found: list[str] = []

    def look(name: str, module: nn.Module) -> Hook:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            own = [value for value in module._parameters.values() if value is not None]
            if not found and not all(map(_finite, [*own, *_tensors(output)])):
                found.append(name)

        return hook

    handles = [
        module.register_forward_hook(look(name, module), with_kwargs=True)
        for name, module in model.named_modules()
        if name and not any(True for _ in module.children())
    ]
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


@contextmanager
def _observing(model: nn.Module, names: Iterable[str], outputs: dict[str, Tensor]) -> Iterator[None]:
    """Inside, the first tensor of what each of these modules returns is kept."""

    def keep(name: str) -> Hook:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            outputs[name] = first_tensor(output)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name), with_kwargs=True) for name in sorted(names)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _once(compute: Callable[[], Seen]) -> Callable[[], Seen]:
    """A function that computes at its first call and remembers."""
    kept: list[Seen] = []

    def call() -> Seen:
        if not kept:
            kept.append(compute())
        return kept[0]

    return call


def _loss_of(output: Any) -> Tensor | None:
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return found if isinstance(found, Tensor) else None


def _with_loss(output: Any, loss: Tensor) -> Any:
    if isinstance(output, dict):
        output["loss"] = loss
    else:
        output.loss = loss
    return output


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())
