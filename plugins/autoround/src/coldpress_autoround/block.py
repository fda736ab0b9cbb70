"""A block whose outputs shall be those of the original: their error, and its gradient by weights."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor

from coldpress.numerics import is_finite
from coldpress.plugin import (
    CalibrationError,
    Call,
    Layer,
    NumericsError,
    Quantized,
    Stage,
    State,
    counted_tokens,
    simulated,
)


@frozen(eq=False)
class Target:
    """What the original block says to a batch.

    Attributes:
        output: [B, S, D], on the CPU.
        counts: which of the tokens count, [B, S, 1] bool; None for all.
    """

    output: Tensor
    counts: Tensor | None


@frozen(kw_only=True, eq=False)
class Block:
    """A stage that is called by batches, and what it should say to them.

    Attributes:
        state: of the run.
        stage: whose layers are tuned.
        inputs: its layers, with how their inputs are quantized.
        targets: index of a batch to what is wanted of it.
    """

    state: State
    stage: Stage
    inputs: Sequence[tuple[Layer, Quantized]]
    targets: Mapping[int, Target]

    @classmethod
    def of(cls, state: State, stage: Stage, inputs: Sequence[tuple[Layer, Quantized]]) -> "Block":
        """With the outputs of the original block for the inputs that it has in the original model as targets."""
        targets = {}
        with state.original():
            for call in state.calls(stage, original=True):
                output = call.output()
                mask = counted_tokens(output, state.batches[call.index])
                counts = None if mask is None else mask.reshape(output.shape[:-1])[..., None].cpu()
                targets[call.index] = Target(output.cpu(), counts)
        return cls(state=state, stage=stage, inputs=inputs, targets=targets)

    def rows(self) -> dict[int, int]:
        """Index of each batch to how many samples it has."""
        return {index: len(target.output) for index, target in self.targets.items()}

    def error(self, weights: Mapping[Layer, Tensor]) -> float:
        """The mean squared error of the outputs with these weights, over all batches."""
        squares, count = 0.0, 0
        with simulated(weights, self.inputs):
            for call in self.state.calls(self.stage):
                error = self._error(call, call.output())
                squares += float(error.square().sum())
                count += self._count(call.index)
        return squares / max(count, 1)

    def gradients(
        self, weights: Mapping[Layer, Tensor], batches: Collection[int], *, size: float
    ) -> dict[Layer, Tensor]:
        """The gradient of the squared error by weights, up to a positive factor, over some batches.

        Args:
            weights: of each layer, [O, I].
            batches: their indices.
            size: what an error usually is; errors are divided by it, which keeps float16 from its ends.

        Returns:
            Layer to gradient, [O, I] float32; layers that no token reached are not in it.

        Raises:
            CalibrationError: the block cannot be differentiated.
            NumericsError: a gradient is not finite; block and batch are named.
        """
        total: dict[Layer, Tensor] = {}
        leaves = {layer: weight.detach().requires_grad_() for layer, weight in weights.items()}
        with simulated(leaves, self.inputs), torch.enable_grad():
            for _, found in self._each(leaves, batches, size):
                for layer, gradient in zip(leaves, found, strict=True):
                    if gradient is not None:
                        total[layer] = gradient.float() if layer not in total else total[layer].add_(gradient)
            if not all(is_finite(one) for one in total.values()):
                self._refuse(leaves, batches, size)
        return total

    def _refuse(self, leaves: Mapping[Layer, Tensor], batches: Collection[int], size: float) -> None:
        """Name the first batch and layer whose gradient is not finite, as their sum is not."""
        for index, found in self._each(leaves, batches, size):
            for layer, gradient in zip(leaves, found, strict=True):
                if gradient is not None and not is_finite(gradient):
                    raise NumericsError(
                        f"{self.stage.name}: the gradient of {layer.name}.weight is not finite in batch {index}"
                    )
        raise NumericsError(f"{self.stage.name}: the sum of gradients of some batches is not finite")

    def _each(
        self, leaves: Mapping[Layer, Tensor], batches: Collection[int], size: float
    ) -> Iterator[tuple[int, Sequence[Tensor | None]]]:
        """Index and gradients of each batch."""
        size *= max(sum(self._count(index) for index in batches), 1) ** 0.5
        for call in self.state.calls(self.stage, batches=batches):
            output = call.output()
            error = (self._error(call, output.detach()) / size).to(output.dtype)
            try:
                yield call.index, torch.autograd.grad(output, list(leaves.values()), error, allow_unused=True)
            except RuntimeError as failure:
                raise CalibrationError(
                    f"{self.stage.name} cannot be differentiated in batch {call.index} ({failure}); AutoRound learns "
                    "by gradients: ignore its layers, or use GPTQModifier"
                ) from failure

    def _error(self, call: Call, output: Tensor) -> Tensor:
        """How an output differs from what is wanted, 0 for tokens that do not count, [B, S, D] float32."""
        target = self.targets[call.index]
        error = output.float() - target.output.to(output.device).float()
        return error if target.counts is None else error * target.counts.to(output.device)

    def _count(self, index: int) -> int:
        """Numbers of a batch's target that count."""
        target = self.targets[index]
        tokens = target.output[..., 0].numel() if target.counts is None else int(target.counts.sum())
        return tokens * target.output.shape[-1]
