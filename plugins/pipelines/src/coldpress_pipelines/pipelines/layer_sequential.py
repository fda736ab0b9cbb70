"""layer_sequential: block after block fed by hand, with no more of the model in memory than one of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from attrs import define, evolve, field, frozen
from torch import Tensor, nn

from coldpress import CalibrationError, ModelError, Pipeline, Stage, State, block_names, partition
from coldpress_pipelines.frames import Call
from coldpress_pipelines.walking import batch_named, matters, refuse_gaps


@frozen(kw_only=True, eq=False)
class LayerSequential(Pipeline):
    """One stage a block; the output of a block is the input of the next one.

    What else a block is called with (masks, positions) is learned by running the model with empty blocks, which
    hand on what they get and need no weights.
    It is refused when batches run the blocks in different orders or one of them twice: `sequential` can do that.

    Attributes:
        sequential_targets: the blocks, by name, `re:` pattern or class; None finds the model's lists of blocks.
        propagate_error: later blocks see what compressed ones put out; False feeds them the original's outputs.
    """

    sequential_targets: list[str] | None = None
    propagate_error: bool = True

    def stages(self, state: State) -> Iterator[Stage]:
        """Yield the prologue, the blocks in the order in which they run, and the rest."""
        parts = {part.name: part for part in partition(state.model, self.sequential_targets)}
        names = block_names(state.model, self.sequential_targets)
        if not names:
            raise ModelError("the model has no list of blocks; use the pipeline basic, or name the blocks")
        blocks = {name: state.model.get_submodule(name) for name in names}
        refuse_gaps(parts, blocks, state)
        state.walk = walk = _Walk(state, blocks)
        try:
            if "prologue" in parts:
                yield parts.pop("prologue")
            if matters(parts, state):
                walk.rehearse()
            for name in walk.order:
                stage = parts.pop(name)
                outputs = None if self.propagate_error else walk.outputs(name)
                yield stage
                if not matters(parts, state):
                    break
                walk.advance(outputs or walk.outputs(name))
            yield from parts.values()
        finally:
            state.walk = None

    def count(self, state: State) -> int:
        """As many as the model has parts."""
        return len(partition(state.model, self.sequential_targets))

    def sweep(self, state: State, stage: Stage) -> Iterator[int]:
        """Run the stage on every batch."""
        walk: _Walk = state.walk
        for index in range(len(state.batches)):
            with batch_named(index):
                if stage.name in walk.blocks:
                    walk.run(index, stage.name)
                elif stage.name == "prologue":
                    walk.run_prologue(index)
                else:
                    walk.run_epilogue(index)
            yield index


class _Stop(Exception):  # noqa: N818 - not an error
    """Ends a forward that has nothing more to tell."""


@define(eq=False)
class _Walk:
    """What every block is called with, and what it is fed next."""

    state: State
    blocks: Mapping[str, nn.Module]
    order: list[str] = field(factory=list)
    _calls: list[dict[str, Call]] = field(factory=list)
    _fed: list[Any] = field(factory=list)
    _tuples: bool = False

    def rehearse(self) -> None:
        """Learn the calls of every block from empty ones.

        Raises:
            CalibrationError: batches run the blocks in different orders, or a block twice.
        """
        for index in range(len(self.state.batches)):
            with batch_named(index):
                self._calls.append(self._empty_forward(index))
            if index == 0:
                self.order = list(self._calls[0])
            elif list(self._calls[index]) != self.order:
                raise CalibrationError(
                    f"batch {index} runs other blocks than batch 0, or in another order; use the pipeline sequential"
                )
        self._fed = [_slot(calls[self.order[0]]) for calls in self._calls]

    def run(self, index: int, name: str) -> Any:
        """The output of a block, as it is now, for what it is fed."""
        call = _fill(self._calls[index][name], self._fed[index])
        return self.blocks[name](*call.args, **call.kwargs)

    def outputs(self, name: str) -> list[Any]:
        """The outputs of a block for every batch."""
        return [self.run(index, name) for index in range(len(self._calls))]

    def advance(self, outputs: list[Any]) -> None:
        """Feed outputs to the next block."""
        self._fed = [output if isinstance(output, Tensor) else output[0] for output in outputs]

    def run_prologue(self, index: int) -> None:
        """Run the model as far as its first block."""

        def stop(name: str, call: Call) -> Any:
            raise _Stop

        self._forward(index, stop)

    def run_epilogue(self, index: int) -> None:
        """Run what follows the blocks on what the last one put out."""
        last, tuples = self.order[-1], self._tuples

        def answer(name: str, call: Call) -> Any:
            x = self._fed[index] if name == last else _slot(call)
            return (x,) if tuples else x

        self._forward(index, answer)

    def _empty_forward(self, index: int) -> dict[str, Call]:
        """The call of every block, when blocks only hand on what they get.

        Whether they hand on a tensor or a tuple is seen from the shapes: indexing a tensor by mistake loses a
        dimension.  The first batch goes on to its end, to see whether a block runs again.
        """
        for tuples in dict.fromkeys((self._tuples, not self._tuples)):
            calls: dict[str, Call] = {}

            def note(name: str, call: Call, calls: dict[str, Call] = calls, tuples: bool = tuples) -> Any:
                if name in calls:
                    raise CalibrationError(f"{name} runs twice in one forward; use the pipeline sequential")
                calls[name] = call
                if index > 0 and len(calls) == len(self.blocks):
                    raise _Stop
                return (_slot(call),) if tuples else _slot(call)

            try:
                self._forward(index, note)
            except (TypeError, IndexError, ValueError, RuntimeError, AttributeError):
                if len(calls) < len(self.blocks):  # what follows the last block may need weights that are not there
                    continue
            if len({_slot(call).shape for call in calls.values()}) == 1:
                self._tuples = tuples
                return calls
        raise CalibrationError("the blocks do not hand on one tensor of one shape; use the pipeline sequential")

    def _forward(self, index: int, answer: Callable[[str, Call], Any]) -> None:
        with _stand_ins(self.blocks, answer), suppress(_Stop):
            self.state.model(**self.state.batches[index])


@contextmanager
def _stand_ins(blocks: Mapping[str, nn.Module], answer: Callable[[str, Call], Any]) -> Iterator[None]:
    """Blocks whose forward is `answer(name, call)`."""

    def forward(name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: answer(name, Call(name, args, kwargs))

    for name, block in blocks.items():
        block.forward = forward(name)
    try:
        yield
    finally:
        for block in blocks.values():
            block.__dict__.pop("forward", None)


def _slot(call: Call) -> Any:
    """The tensor that travels from block to block: the first that the block is called with."""
    for value in (*call.args, *call.kwargs.values()):
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise CalibrationError(f"{call.block} is called without a tensor of numbers; use the pipeline sequential")


def _fill(call: Call, x: Any) -> Call:
    """The call with another tensor in that place."""
    old = _slot(call)
    if any(value is old for value in call.args):
        return evolve(call, args=tuple(x if value is old else value for value in call.args))
    return evolve(call, kwargs={name: x if value is old else value for name, value in call.kwargs.items()})
