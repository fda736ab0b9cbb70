"""layer_sequential: block after block fed by hand, with no more of the model in memory than one of them."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from typing import Any, ClassVar

import torch
from attrs import define, evolve, field, frozen
from attrs.validators import ge, in_
from torch import Tensor, nn

from coldpress.plugin import (
    CalibrationError,
    Call,
    ModelError,
    Outline,
    Pass,
    Pipeline,
    Stage,
    State,
    block_names,
    partition,
)
from coldpress_pipelines.caches import on_copies
from coldpress_pipelines.frames import Suspended
from coldpress_pipelines.gaps import gaps_of, with_gaps, with_parameters
from coldpress_pipelines.instance import replaced
from coldpress_pipelines.offload import DEFAULT_LIMIT, PLACES, Offload, Place
from coldpress_pipelines.walking import HOW, as_list, batch_named, matters, placed, refuse_unreached


@frozen(kw_only=True, eq=False)
class LayerSequential(Pipeline):
    """One stage a block; the output of a block is the input of the next one.

    What else a block is called with (masks, positions) is learned by running the model with empty blocks, which
    return what they get and need no weights.
    Modules between two lists of blocks are fed as blocks are.
    It is refused when batches run the blocks in different orders or one of them twice, or when a block is called with
    something else than what the one before returned: `sequential` can do that.

    Attributes:
        sequential_targets: the blocks, by name, `re:` pattern or class; None finds the model's lists of blocks.
        propagate_error: later blocks see the outputs of compressed ones; False feeds them the original's outputs, None
            does so where no modifier makes use of the others.
        offload_activations: where activations wait between two stages: "auto", on a CUDA device while half of its
            memory is free, else in CPU memory; "cpu", in CPU memory; or "disk", in files beyond the limit.
        offload_limit: bytes of activations that "disk" leaves in memory.
    """

    holds_calls: ClassVar[bool] = True

    sequential_targets: list[str] | None = field(default=None, converter=as_list)
    propagate_error: bool | None = None
    offload_activations: Place = field(default="auto", validator=in_(PLACES))
    offload_limit: int = field(default=DEFAULT_LIMIT, validator=ge(0))

    def stages(self, state: State) -> Iterator[Stage]:
        """Yield the prologue, the blocks in the order in which they run, and the rest."""
        parts, names = self._parts_of(state), block_names(state.model, self.sequential_targets)
        if not names:
            raise ModelError(
                f"{type(state.model).__name__} has no list of blocks: use the pipeline basic, or name them with {HOW}"
            )
        between = gaps_of({name: part for name, part in parts.items() if name not in names})
        blocks = {name: state.model.get_submodule(name) for name in [*names, *between]}
        with Offload.of(state, place=self.offload_activations, limit=self.offload_limit) as room:
            state.pipeline_state = walk = _Walk(state, blocks, room, frozenset(between))
            try:
                if "prologue" in parts:
                    yield parts.pop("prologue")
                yield from self._blocks_in_order(state, walk, parts)
                yield from parts.values()
            finally:
                state.pipeline_state = None

    def outline(self, state: State, *, divisible: bool = False) -> Outline:
        """The parts of the model; a batch runs through a block to look and, where it sees the compressed one, again."""
        follows = state.sweep.propagated_error if self.propagate_error is None else self.propagate_error
        return Outline(
            stages=tuple(self._parts_of(state).values()),
            forwards=2.0 if follows else 1.0,
            keeps_outputs=not follows,
            on_disk=self.offload_activations == "disk",
        )

    def count(self, state: State) -> int:
        """As many as the model has parts."""
        return len(self._parts_of(state))

    def sweep(self, state: State, stage: Stage) -> Iterator[Pass]:
        """Run the stage on every batch."""
        walk: _Walk = state.pipeline_state
        if stage.name in walk.blocks and stage.name not in walk.order:
            refuse_unreached([stage.name], {stage.name: stage}, state)
            return
        for index, batch in state.share.batches(state.batches):
            with batch_named(index, batch):
                if stage.name in walk.blocks:
                    walk.visit(index, stage.name)
                elif stage.name == "prologue":
                    walk.run_prologue(index)
                else:
                    walk.run_epilogue(index)
            yield Pass(index)

    def calls(
        self, state: State, stage: Stage, *, original: bool = False, batches: Collection[int] | None = None
    ) -> Iterator[Call]:
        """Yield what a block is called with."""
        walk: _Walk = state.pipeline_state
        if stage.name not in walk.blocks or original:
            yield from super().calls(state, stage, original=original, batches=batches)
        else:
            yield from walk.calls_of(stage.name, batches)

    def needs_sweep(self, state: State, stage: Stage) -> bool:
        """Where later blocks are fed with what the original outputs."""
        walk: _Walk = state.pipeline_state
        return walk.keeps

    def _parts_of(self, state: State) -> dict[str, Stage]:
        parts = {part.name: part for part in partition(state.model, self.sequential_targets)}
        return with_gaps(parts, with_parameters(state.model))

    def _blocks_in_order(self, state: State, walk: "_Walk", parts: dict[str, Stage]) -> Iterator[Stage]:
        """Yield the blocks; what is left in `parts` afterwards needs no batch."""
        if matters(parts, state):
            walk.rehearse()
        for name in walk.order:
            stage = parts.pop(name)
            follows = state.sweep.propagated_error if self.propagate_error is None else self.propagate_error
            onward = matters(parts, state)
            walk.keeps = onward and not follows
            yield stage
            walk.keeps = False
            if not onward:
                return
            walk.advance(name)


_HOLE = object()


class _Stop(Exception):  # noqa: N818 - not an error
    """Ends a forward that has nothing more to tell."""


@define(eq=False)
class _Walk:
    """What every block is called with, and what it is fed next."""

    state: State
    blocks: Mapping[str, nn.Module]
    room: Offload
    between: frozenset[str]  # those of them that are no blocks of a list, and return one tensor
    order: list[str] = field(factory=list)
    keeps: bool = False  # the next block is fed with what this one outputs when it is first run
    _outputs: dict[int, Tensor] = field(factory=dict)
    _calls: dict[int, dict[str, Suspended]] = field(factory=dict)  # with a hole where the tensor goes that is fed
    _fed: dict[int, Tensor] = field(factory=dict)
    _tuples: bool = False

    def rehearse(self) -> None:
        """Learn the calls of every block from empty ones.

        Raises:
            CalibrationError: batches run the blocks in different orders, or a block twice.
        """
        for index, batch in self.state.share.batches(self.state.batches):
            with batch_named(index, batch):
                calls = self._empty_forward(index)
                self.order = self.order or list(calls)
                if list(calls) != self.order:
                    raise CalibrationError(
                        f"batch {index} runs other blocks than the first, or in another order; use the pipeline "
                        "sequential"
                    )
                self._fed[index] = _slot(calls[self.order[0]])
                self._calls[index] = {name: _with_hole(call) for name, call in calls.items()}
                self.room.put(self._fed[index], [(call.args, call.kwargs) for call in self._calls[index].values()])

    def run(self, index: int, name: str) -> Any:
        """The output of a block, as it is now, for what it is fed."""
        call = _filled(self._calls[index][name], self._fed[index])
        with self.room.taken(call.args, call.kwargs):
            return on_copies(self.blocks[name])(*call.args, **call.kwargs)

    def calls_of(self, name: str, batches: Collection[int] | None) -> Iterator[Call]:
        """What a block is called with, batch by batch."""
        for index in self._fed:
            if batches is None or index in batches:
                call = _filled(self._calls[index][name], self._fed[index])
                with self.room.taken(call.args, call.kwargs):
                    yield Call(index, call.args, call.kwargs, on_copies(self.blocks[name]))

    def visit(self, index: int, name: str) -> None:
        """Run a block, whose layers are observed."""
        if self.keeps and index not in self._outputs:
            self._outputs[index] = self._output(index, name)
        else:
            self.run(index, name)

    def advance(self, name: str) -> None:
        """Feed the next block with outputs of this one, as they were kept, or as they are now."""
        for index in list(self._fed):
            kept = self._outputs.pop(index, None)
            self._fed[index] = self._output(index, name) if kept is None else kept

    def _output(self, index: int, name: str) -> Tensor:
        with batch_named(index, self.state.batches[index]):
            output = self.run(index, name)
        x: Tensor = output if isinstance(output, Tensor) else output[0]
        self.room.put(x)
        return x

    def run_prologue(self, index: int) -> None:
        """Run the model as far as its first block."""

        def stop(name: str, call: Suspended) -> Any:
            raise _Stop

        self._forward(index, stop)

    def run_epilogue(self, index: int) -> None:
        """Run what follows the blocks on the output of the last one."""
        last, tuples, fed = self.order[-1], self._tuples, self._fed[index]

        def answer(name: str, call: Suspended) -> Any:
            x = fed if name == last else _slot(call)
            return (x,) if tuples and name not in self.between else x

        with self.room.taken(fed):
            self._forward(index, answer)

    def _empty_forward(self, index: int) -> dict[str, Suspended]:
        """The call of every block, when blocks only return what they get.

        Whether they return a tensor or a tuple is seen from the shapes: indexing a tensor by mistake loses a
        dimension.  The first batch runs to its end, to see whether a block runs again.
        """
        for tuples in dict.fromkeys((self._tuples, not self._tuples)):
            calls: dict[str, Suspended] = {}

            def note(name: str, call: Suspended, calls: dict[str, Suspended] = calls, tuples: bool = tuples) -> Any:
                if name in calls:
                    raise CalibrationError(f"{name} runs twice in one forward; use the pipeline sequential")
                calls[name] = call
                if self._calls and len(calls) == len(self.blocks):
                    raise _Stop
                return (_slot(call),) if tuples and name not in self.between else _slot(call)

            try:
                self._forward(index, note)
            except (TypeError, IndexError, ValueError, RuntimeError, AttributeError):
                if not calls:
                    raise  # it did not even come to the first block: the batch is to blame
                if len(calls) < len(self.blocks):  # what follows the last block may need weights that are not there
                    continue
            if len({_slot(call).shape for call in calls.values()}) == 1:
                for broken in _breaks(calls):
                    raise CalibrationError(f"{broken}; use the pipeline sequential")
                self._tuples = tuples
                return calls
        raise CalibrationError("the blocks do not pass on one tensor of one shape; use the pipeline sequential")

    def _forward(self, index: int, answer: Callable[[str, Suspended], Any]) -> None:
        with _stand_ins(self.blocks, answer), suppress(_Stop):
            self.state.model(**placed(self.state.batches[index], self.state.model))


@contextmanager
def _stand_ins(blocks: Mapping[str, nn.Module], answer: Callable[[str, Suspended], Any]) -> Iterator[None]:
    """Blocks that do not run and whose outputs are `answer(name, call)`."""

    def forward(name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: answer(name, Suspended(name, args, kwargs))

    with ExitStack() as stand_ins:
        for name, block in blocks.items():  # hooks and attachments act when the block itself runs
            stand_ins.enter_context(replaced(block, "_call_impl", forward(name)))
        yield


def _breaks(calls: Mapping[str, Suspended]) -> Iterator[str]:
    """Where blocks that return what they get are not called with what the one before returned."""
    for (before, given), (name, call) in pairwise(calls.items()):
        a, b = _slot(given), _slot(call)
        if a is not b and (a.is_meta or b.is_meta or not torch.equal(a, b)):
            yield f"{name} is not called with what {before} returns, but with what the model makes of that, or others"


def _slot(call: Suspended) -> Any:
    """The tensor that travels from block to block: the first that the block is called with."""
    for value in (*call.args, *call.kwargs.values()):
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise CalibrationError(f"{call.name} is called without a tensor of numbers; use the pipeline sequential")


def _with_hole(call: Suspended) -> Suspended:
    """The call with nothing where that tensor was."""
    return _replaced(call, _slot(call), _HOLE)


def _filled(call: Suspended, x: Tensor) -> Suspended:
    """The call with a tensor where there was nothing."""
    return _replaced(call, _HOLE, x)


def _replaced(call: Suspended, old: Any, new: Any) -> Suspended:
    args = tuple(new if value is old else value for value in call.args)
    return evolve(call, args=args, kwargs={name: new if value is old else value for name, value in call.kwargs.items()})
