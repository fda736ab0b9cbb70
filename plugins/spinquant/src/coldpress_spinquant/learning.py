"""Learning rotations: the model with rounded inputs, its loss, and descent on the manifold of rotations.

every layer that the plan quantizes    reads g Q((x / g) R) R^T in place of x, by a hook
every block                            keeps its inputs only, and is run again for its gradients
every step                             one batch, the gradient of the loss for all rotations, a Cayley step
"""

import base64
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from coldpress.plugin import CalibrationError, NumericsError, QuantizationArgs, State, block_names
from coldpress_spinquant.algorithm import descend, rounded_rotated, settled

log = logging.getLogger(__name__)


@frozen(eq=False)
class Reader:
    """A layer whose inputs are rotated and rounded.

    Attributes:
        layer: its name.
        rotation: the name of what rotates its inputs; None for nothing.
        gain: says what the norm before it multiplies its channels by, [I], once the norm has run, so that its weight
            is in memory; None for ones.
        args: how its inputs are rounded.
    """

    layer: str
    rotation: str | None
    gain: Callable[[], Tensor] | None
    args: QuantizationArgs


def learn(
    state: State,
    readers: Sequence[Reader],
    start: Mapping[str, Tensor],
    learned: Sequence[str],
    *,
    steps: int,
    learning_rate: float,
) -> dict[str, Tensor]:
    """The rotations that the loss of the model is smallest with.

    Args:
        state: whose model, which is not changed, and batches.
        readers: the layers whose inputs are rounded.
        start: every rotation by name, [n, n] float64.
        learned: names of those that are learned.
        steps: of descent, a batch each.
        learning_rate: of the first step.

    Returns:
        The learned ones, orthogonal, float64.

    Raises:
        NumericsError: the loss is not finite.
    """
    model: Any = state.model
    device = _device(model)
    rotations = {name: matrix.to(device, torch.float32) for name, matrix in start.items()}
    with ExitStack() as stack, torch.enable_grad():
        stack.enter_context(_without_gradients(model))
        for reader in readers:
            hook = model.get_submodule(reader.layer).register_forward_pre_hook(partial(_round, reader, rotations))
            stack.callback(hook.remove)
        for name in block_names(model):
            stack.enter_context(_rerun(model.get_submodule(name)))
        for step in range(steps):
            for name in learned:
                rotations[name] = rotations[name].detach().requires_grad_(True)
            loss = _loss(model, state.batches[step % len(state.batches)], device)
            if not bool(loss.isfinite()):
                raise NumericsError(
                    f"the loss of step {step} is {float(loss.detach())}: learn with a smaller learning_rate"
                )
            leaves = [rotations[name] for name in learned]
            gradients = torch.autograd.grad(loss, leaves)
            stepped = descend(leaves, gradients, step=step, steps=steps, learning_rate=learning_rate)
            rotations |= dict(zip(learned, stepped, strict=True))
            value = float(loss.detach())
            state.log.append({"learning": step, "loss": round(value, 4)})
            log.info("rotations, step %d of %d: loss %.4f", step + 1, steps, value)
    return {name: settled(rotations[name].cpu()) for name in learned}


def to_text(matrices: Mapping[str, Tensor]) -> dict[str, Any]:
    """Matrices as JSON can hold them, exactly."""
    return {
        name: [len(matrix), base64.b64encode(matrix.double().contiguous().numpy().tobytes()).decode("ascii")]
        for name, matrix in matrices.items()
    }


def from_text(value: Mapping[str, Any], name: str) -> Tensor:
    """The inverse of `to_text`, of one matrix."""
    size, text = value[name]
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float64).reshape(size, size)


def dynamic(args: QuantizationArgs) -> QuantizationArgs:
    """How inputs are rounded while rotations are learned: scales of static inputs are not known yet."""
    if args.dynamic is True:
        return args
    return evolve(args, strategy="group" if args.group_size else "token", dynamic=True, observer=None)


def _device(model: nn.Module) -> torch.device:
    """Where batches go: the weights of a model that is streamed are not there yet, but its buffers are."""
    tensors = (*model.parameters(), *model.buffers())
    return next((tensor.device for tensor in tensors if not tensor.is_meta), torch.device("cpu"))


def _loss(model: Any, batch: Mapping[str, Any], device: torch.device) -> Tensor:
    """The mean cross-entropy of the tokens that come next, of a batch."""
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    logits = model(**{**batch, "use_cache": False}).logits[:, :-1]
    expected = batch["input_ids"][:, 1:]
    mask = batch.get("attention_mask")
    if mask is not None:
        expected = expected.masked_fill(mask[:, 1:] == 0, -100)
    if not bool((expected != -100).any()):
        raise CalibrationError("a batch has no token that comes next, so it has no loss: use longer samples")
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), expected.flatten(), ignore_index=-100)


def _round(reader: Reader, rotations: Mapping[str, Tensor], module: nn.Module, args: tuple[Any, ...]) -> Any:
    rotation = None if reader.rotation is None else rotations[reader.rotation]
    x, gain = args[0], None if reader.gain is None else reader.gain()
    rounded = rounded_rotated(x.float(), rotation, gain, reader.args)
    return (rounded.to(x.dtype), *args[1:])


@contextmanager
def _rerun(block: nn.Module) -> Iterator[None]:
    """Inside, a block keeps nothing but its inputs for gradients, and is run again when they are computed."""
    forward = block.forward
    vars(block)["forward"] = lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)
    try:
        yield
    finally:
        vars(block).pop("forward", None)


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter asks for a gradient."""
    asking = [name for name, p in model.named_parameters() if p.requires_grad]
    for name in asking:
        model.get_parameter(name).requires_grad_(False)
    try:
        yield
    finally:
        for name in asking:
            model.get_parameter(name).requires_grad_(True)
