"""Learning rotations: the model with rounded inputs, its loss, and descent on the manifold of rotations.

every layer that the plan quantizes    reads g Q((x / g) R) R^T in place of x, by a hook, once for each x
every block                            keeps its inputs only, and is run again for its gradients
every step                             one sample, the gradient of the loss for turns of all rotations, a Cayley step
"""

import base64
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from coldpress.numerics import Rotation
from coldpress.plugin import CalibrationError, NumericsError, QuantizationArgs, State, block_names, counted_tokens, gain
from coldpress_spinquant.algorithm import descend, rounded_rotated, settled

log = logging.getLogger(__name__)


@frozen(eq=False)
class Reader:
    """A layer whose inputs are rotated and rounded.

    Attributes:
        layer: its name.
        rotation: the name of what rotates its inputs; None for nothing.
        gain: says what the norm before it multiplies its channels by, [I], once the norm has run, so that its weight
            is in memory; None for ones.  Readers of one norm have one and the same.
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
    fixed: Mapping[str, Rotation],
    *,
    steps: int,
    learning_rate: float,
) -> dict[str, Tensor]:
    """The rotations that the loss of the model is smallest with.

    Args:
        state: whose model, which is not changed, and batches.
        readers: the layers whose inputs are rounded.
        start: the rotations that are learned, by name, [n, n] float64.
        fixed: other rotations by name.
        steps: of descent, one sample each.
        learning_rate: of the first step.

    Returns:
        The learned rotations, orthogonal, float64.

    Raises:
        CalibrationError: the data have no token to predict.
        NumericsError: the loss is not finite.
    """
    model: Any = state.model
    device, samples = _device(model), _samples(state.batches)
    rotations = {name: matrix.to(device, torch.float32) for name, matrix in start.items()}
    turns: dict[str, Tensor] = {}
    rounding = _Rounding(rotations, turns, fixed)
    with ExitStack() as stack, torch.enable_grad():
        stack.enter_context(_without_gradients(model))
        for reader in readers:
            hook = model.get_submodule(reader.layer).register_forward_pre_hook(partial(rounding.round, reader))
            stack.callback(hook.remove)
        for name in block_names(model):
            stack.enter_context(_rerun(model.get_submodule(name), rounding))
        for step in range(steps):
            turns |= {name: torch.zeros_like(matrix, requires_grad=True) for name, matrix in rotations.items()}
            loss = _loss(model, samples[step % len(samples)], device)
            rounding.forget()
            if not bool(loss.isfinite()):
                raise NumericsError(
                    f"the loss of step {step} is {float(loss.detach())}: learn with a smaller learning_rate"
                )
            gradients = torch.autograd.grad(loss, list(turns.values()))
            stepped = descend(rotations.values(), gradients, step=step, steps=steps, learning_rate=learning_rate)
            rotations |= dict(zip(rotations, stepped, strict=True))
            value = float(loss.detach())
            state.log.append({"learning": step, "loss": round(value, 4)})
            log.info("rotations, step %d of %d: loss %.4f", step + 1, steps, value)
    return {name: settled(matrix.cpu()) for name, matrix in rotations.items()}


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


def gains_of(state: State, pair: Any) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Name of each reader of a norm, and what says its gain; the same for readers that see the same channels."""
    known: dict[tuple[int, ...], Callable[[], Tensor]] = {}
    for member in pair.members:
        channels = member.channels
        yield member.name, known.setdefault(tuple(channels.tolist()), partial(_gain, state, pair, channels))


def _gain(state: State, pair: Any, channels: Tensor) -> Tensor:
    """What a norm multiplies the channels of a reader by, [I]; ones where that is zero."""
    found = gain(state.model, pair)
    return torch.where(found == 0, 1.0, found)[channels]


def _device(model: nn.Module) -> torch.device:
    """Where batches go: the weights of a model that is streamed are not there yet, but its buffers are."""
    tensors = (*model.parameters(), *model.buffers())
    return next((tensor.device for tensor in tensors if not tensor.is_meta), torch.device("cpu"))


@frozen(eq=False)
class _Sample:
    """What the model is called with, and the tokens that come next, [B, S - 1]; -100 for those that do not count."""

    arguments: dict[str, Any]
    labels: Tensor


def _samples(batches: Iterable[Mapping[str, Any]]) -> list[_Sample]:
    """The rows of batches that have a token to predict; a batch that is more than ids and masks is one sample.

    Raises:
        CalibrationError: there are none.
    """
    found = []
    for batch in batches:
        ids: Tensor = batch["input_ids"]  # [B, S]
        counted = counted_tokens(ids[..., None], batch)
        labels = (ids if counted is None else ids.masked_fill(~counted.to(ids.device), -100))[:, 1:]
        plain = all(isinstance(value, Tensor) and value.shape == ids.shape for value in batch.values())
        for rows in (slice(row, row + 1) for row in range(len(ids))) if plain else (slice(None),):
            if bool((labels[rows] != -100).any()):
                arguments = {name: value[rows] if plain else value for name, value in batch.items()}
                found.append(_Sample(arguments, labels[rows]))
    if not found:
        raise CalibrationError("no sample has a token that comes next, so there is no loss: use longer samples")
    return found


def _loss(model: Any, sample: _Sample, device: torch.device) -> Tensor:
    """The mean cross-entropy of the tokens that come next."""
    arguments = {
        name: value.to(device) if isinstance(value, Tensor) else value for name, value in sample.arguments.items()
    }
    logits = model(**{**arguments, "use_cache": False}).logits[:, :-1].flatten(0, 1)
    return nn.functional.cross_entropy(logits.float(), sample.labels.flatten().to(logits.device), ignore_index=-100)


class _Rounding:
    """Rounds what layers read; the layers that read one tensor in one way share the result.

    Args:
        rotations: those that are learned, by name, [n, n], as they are when a layer runs.
        turns: of these, which ask for gradients, by name, [n, n].
        fixed: others by name.
    """

    def __init__(
        self, rotations: Mapping[str, Tensor], turns: Mapping[str, Tensor], fixed: Mapping[str, Rotation]
    ) -> None:
        self._rotations, self._turns, self._fixed = rotations, turns, fixed
        self._last: tuple[Tensor, Reader, Tensor] | None = None

    def round(self, reader: Reader, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """In place of the arguments of a layer, a hook."""
        x: Tensor = args[0]
        if self._last is None or self._last[0] is not x or not _alike(self._last[1], reader):
            gain = None if reader.gain is None else reader.gain()
            turn = None if reader.rotation is None else self._turns.get(reader.rotation)
            rounded = rounded_rotated(x, self._rotation(reader, x.shape[-1]), gain, reader.args, turn)
            self._last = x, reader, rounded
        return (self._last[2], *args[1:])

    def forget(self) -> None:
        """Keep nothing of the tensor that was read last."""
        self._last = None

    def _rotation(self, reader: Reader, width: int) -> Rotation | None:
        if reader.rotation is None:
            return None
        block = self._rotations.get(reader.rotation)
        return self._fixed[reader.rotation] if block is None else Rotation(width, len(block), block=block)


def _alike(one: Reader, other: Reader) -> bool:
    return (one.rotation, one.args) == (other.rotation, other.args) and one.gain is other.gain


@contextmanager
def _rerun(block: nn.Module, rounding: _Rounding) -> Iterator[None]:
    """Inside, a block keeps nothing but its inputs for gradients, and is run again when they are computed."""
    forward = block.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        rounding.forget()  # so that the second run keeps what the first one did
        return forward(*args, **kwargs)

    vars(block)["forward"] = lambda *args, **kwargs: checkpoint(run, *args, use_reentrant=False, **kwargs)
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
