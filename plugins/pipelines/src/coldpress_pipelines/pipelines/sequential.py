"""sequential: block by block through the model's own forward, every batch waiting at the same door."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from attrs import define, field, frozen
from attrs.validators import ge, in_
from torch import Tensor, nn

from coldpress.plugin import CalibrationError, InputTap, Layer, Pipeline, Stage, State, block_names, partition
from coldpress_pipelines.frames import Frames
from coldpress_pipelines.offload import DEFAULT_LIMIT, PLACES, Offload, Place
from coldpress_pipelines.walking import HOW, as_list, batch_named, matters, placed, refuse_gaps

log = logging.getLogger(__name__)

_SMALL = 1 << 28  # bytes in front of a block that may be several times as many inside of it


@frozen(kw_only=True, eq=False)
class Sequential(Pipeline):
    """One stage a block; a batch waits in front of a block until the block is compressed.

    The model's own `forward` runs, unchanged, one greenlet a batch: nothing is traced, no architecture is known by
    name.  A block that a batch skips is compressed without it; one that runs twice is compressed at its first visit.
    Layers between two lists of blocks are not observed: calibrate those with `basic`.

    Inside a block, layers that read the same input are compressed as soon as every batch has reached them, so each
    layer sees what the compressed ones before it put out, and every batch runs through a block once.
    Where that cannot be (a modifier moves the signal, experts, outputs of the original are wanted), a block is run once
    to look and once to go on.  Where a modifier compares, every batch goes through the model twice, side by side: once
    more through the blocks as they were.

    Attributes:
        sequential_targets: blocks to stop at, by name, `re:` pattern or class; None finds the model's lists of blocks.
        propagate_error: later blocks see what compressed ones put out; False shows them the original's outputs, None
            does so where no modifier makes use of the others and `true_sequential` is not asked for.
        true_sequential: True leads batches through a block from layer to layer; False compresses a block as a whole.
            A batch that waits inside of a block keeps what its forward holds there, several times what it is called
            with, on the device where it is: None does so on the CPU, for up to 256 MiB of inputs of the block.
        offload_activations: where activations wait between two stages: "cpu", in memory, or "disk", in files beyond
            the limit.
        offload_limit: bytes of activations that "disk" leaves in memory.
    """

    compares: ClassVar[bool] = True

    sequential_targets: list[str] | None = field(default=None, converter=as_list)
    propagate_error: bool | None = None
    true_sequential: bool | None = None
    offload_activations: Place = field(default="cpu", validator=in_(PLACES))
    offload_limit: int = field(default=DEFAULT_LIMIT, validator=ge(0))

    def stages(self, state: State) -> Iterator[Stage]:
        """Yield the prologue, the blocks in the order in which batches reach them, and the rest."""
        parts = {part.name: part for part in partition(state.model, self.sequential_targets)}
        names = block_names(state.model, self.sequential_targets)
        blocks = {name: state.model.get_submodule(name) for name in names}
        refuse_gaps(parts, blocks, state)
        if not blocks:
            log.warning(
                "%s has no list of blocks, so it is one stage; name them with %s", type(state.model).__name__, HOW
            )
        room = Offload.of(state, place=self.offload_activations, limit=self.offload_limit)
        with room, Frames(state.model, blocks) as frames:
            state.pipeline_state = walk = _Walk(state, frames, room)
            try:
                if "prologue" in parts:
                    yield parts.pop("prologue")
                yield from self._blocks_in_order(state, walk, parts)
                yield from parts.values()
            finally:
                state.pipeline_state = None

    def count(self, state: State) -> int:
        """As many as the model has parts."""
        return len(partition(state.model, self.sequential_targets))

    def parts(self, state: State, stage: Stage) -> Iterator[Stage]:
        """Yield what nobody observes, and then the layers of a block, those that read the same input together."""
        walk: _Walk = state.pipeline_state
        observed = [layer for layer in stage.every_layer if layer.name in state.observed]
        if observed and walk.at(stage.name) and self._leads_through(walk, stage):
            yield from walk.pass_through(stage, observed)
        else:
            yield stage

    def sweep(self, state: State, stage: Stage) -> Iterator[int]:
        """Run the stage on every batch that waits at it; what nobody observes is not computed."""
        walk: _Walk = state.pipeline_state
        if walk.part is not None:
            yield from walk.show()
        elif stage.name in ("prologue", "model"):
            yield from walk.rehearse()
        elif stage.name in walk.frames.blocks:
            yield from walk.visit(stage.name)
        else:
            yield from walk.finish()

    def needs_sweep(self, state: State, stage: Stage) -> bool:
        """Where later blocks, or those who compare, are shown what the original puts out."""
        walk: _Walk = state.pipeline_state
        looks = state.compares and stage.name in walk.frames.blocks and walk.part != {}
        return walk.keeps or looks

    def _follows(self, state: State) -> bool:
        """Whether batches see what is compressed; to ask for `true_sequential` is to ask for it."""
        by_itself = state.follows_error or bool(self.true_sequential)
        return by_itself if self.propagate_error is None else self.propagate_error

    def _leads_through(self, walk: "_Walk", stage: Stage) -> bool:
        if not self._follows(walk.state):
            return False
        if self.true_sequential is not None:
            return self.true_sequential
        on_cpu = all(layer.weight.device.type == "cpu" for layer in stage.every_layer)
        return on_cpu and walk.bytes_at(stage.name) <= _SMALL

    def _blocks_in_order(self, state: State, walk: "_Walk", parts: dict[str, Stage]) -> Iterator[Stage]:
        """Yield every block that is reached; what is left in `parts` afterwards nobody waits at any more."""
        if walk.frames.blocks and matters(parts, state):
            walk.start()
        while walk.frames.waiting:
            name = next(name for name in walk.frames.blocks if name in walk.doors())
            stage = parts.pop(name, None)
            if stage is not None:
                walk.keeps = not self._follows(state) and matters(parts, state)
                yield stage
                walk.keeps = False
            if not matters(parts, state):
                walk.frames.drop()
                break
            walk.leave(name)
            if any(block in parts for block in walk.frames.blocks):
                walk.advance(name)
            else:  # what follows is the epilogue: it is run while it is observed
                walk.remember(name)
                return
        unseen = [name for name in walk.frames.blocks if name in parts]
        if unseen and matters(parts, state):
            raise CalibrationError(
                f"no calibration batch runs {', '.join(unseen)}; ignore their layers, or say with sequential_targets "
                "which blocks run"
            )


@define(eq=False)
class _Walk:
    """The batches on their way.

    Attributes:
        state: whose batches they are.
        frames: their suspended forwards; that of batch ~index is the one of index through the original's blocks.
        room: where their activations wait.
    """

    state: State
    frames: Frames
    room: Offload
    part: Mapping[str, nn.Module] | None = None  # layers inside of a block that are calibrated now
    keeps: bool = False  # what the block puts out when it is first run is what batches go on with
    _outputs: dict[int, Any] = field(factory=dict)  # that are not handed back yet
    _groups: dict[Any, list[list[str]] | None] = field(factory=dict)  # kind of block -> layers that share inputs

    def start(self) -> None:
        """Run every batch to its first block."""
        for index, batch in enumerate(self.state.batches):
            for place in (index, ~index) if self.state.compares else (index,):
                with self._named(place):
                    self.frames.start(place, placed(batch, self.frames.model))
                self._rest(place)

    def rehearse(self) -> Iterator[int]:
        """Run the beginning of every batch, and drop it."""
        for index, batch in enumerate(self.state.batches):
            with self._named(index):
                self.frames.start(index, placed(batch, self.frames.model))
            self.frames.drop()
            yield index

    def doors(self) -> set[str]:
        """Blocks at which somebody waits."""
        return {call.name for call in self.frames.waiting.values()}

    def at(self, name: str) -> list[int]:
        """The batches that wait at a block, in order."""
        return sorted(index for index, call in self.frames.waiting.items() if call.name == name and index >= 0)

    def bytes_at(self, name: str) -> int:
        """Of the tensors that a block is about to be called with, all batches together; positions and masks are not."""
        firsts = [
            call.args[:1] or tuple(call.kwargs.values())[:1]
            for call in self.frames.waiting.values()
            if call.name == name
        ]
        return sum(x.nbytes for (x,) in firsts if isinstance(x, Tensor))

    def visit(self, name: str) -> Iterator[int]:
        """Run the block on every batch that waits at it."""
        for index in self._both(name):
            output = self._run(index)
            if (self.keeps or index < 0) and output is not None:
                self.room.put(self._outputs.setdefault(index, output))
            yield index

    def _both(self, name: str) -> list[int]:
        """The batches at a block or layer, each after the same in the original where somebody compares."""
        here = self.at(name)
        if not self.state.compares:
            return here
        originals = {~index for index, call in self.frames.waiting.items() if call.name == name and index < 0}
        if lost := originals.symmetric_difference(here):
            raise CalibrationError(
                f"batch {min(lost)} does not take the way through the model that it took in the original, at {name}"
            )
        return [place for index in here for place in (~index, index)]

    def remember(self, name: str) -> None:
        """Keep what the block puts out now, to hand it back after the block is compressed, or when it is finished."""
        for index in self.at(name):
            if index not in self._outputs:
                self._outputs[index] = self._run(index)
                self.room.put(self._outputs[index])

    def pass_through(self, stage: Stage, layers: Sequence[Layer]) -> Iterator[Stage]:
        """Lead every batch that waits at a block through it, from layer to layer; those that share an input are a part.

        Args:
            stage: the block.
            layers: of it that are observed.
        """
        groups = self._sharing(stage, layers)
        if groups is None:  # a layer runs twice
            yield stage
            return
        left = {layer.name: layer.module for layer in layers}
        try:
            self.part = {}  # of what nobody observes
            yield Stage(stage.name, stage.index, {n: m for n, m in stage.modules.items() if n not in left})
            with self.frames.doors(dict(left)):
                self._let_in(*self._both(stage.name))
                while doors := [name for name in left if name in self.doors()]:
                    door = doors[0]
                    group = next((group for group in groups if door in group), [door])
                    self.part = {name: left.pop(name) for name in [door, *group] if name in left}
                    yield Stage(stage.name, stage.index, self.part)
                    self.frames.open(list(self.part))
                    self._let_in(*self.at(door))
            if left:  # no batch calls these
                self.part = left
                yield Stage(stage.name, stage.index, left)
        finally:
            self.part = None

    def show(self) -> Iterator[int]:
        """Show the layers of the part what every batch that waits at it has for them.

        The original's goes through them, as long as they are what they were.
        """
        assert self.part
        door = next(iter(self.part))
        places = self._both(door)
        if self.state.compares:
            self.frames.open(list(self.part))
        for index in places:
            call = self.frames.waiting[index]
            if index < 0:
                self._enter(index)
                self._rest(index)
            else:
                with self.room.taken(call.args, call.kwargs), self._named(index):
                    self.frames.show(index, self.part)
            yield index

    def leave(self, name: str) -> None:
        """Lead every batch that is inside of a block to its end."""
        for index, call in sorted(self.frames.waiting.items()):
            if call.name not in self.frames.blocks:
                self._enter(index)
            call = self.frames.waiting[index]
            if call.outputs:
                (self._outputs[index],) = call.outputs
                self.room.put(self._outputs[index])

    def _let_in(self, *indices: int) -> None:
        for index in indices:
            self._enter(index)
            self._rest(index)

    def _enter(self, index: int) -> None:
        """Let a batch run what it waits at by itself, to the next door."""
        call = self.frames.waiting[index]
        self.room.take(call.args, call.kwargs)
        with self._named(index):
            self.frames.enter(index)

    def _sharing(self, stage: Stage, layers: Sequence[Layer]) -> list[list[str]] | None:
        """Names of layers that read the same input, in the order of their calls; None where one is called twice.

        The first batch that waits at the block tells; blocks of the same class and layers are alike.
        """
        inside = [layer.name.removeprefix(stage.name) for layer in layers]
        kind = (type(self.frames.blocks[stage.name]), *inside)
        if kind not in self._groups:
            index = self.at(stage.name)[0]
            with InputTap(layers) as tap:
                self._run(index)
                calls = tap.collect(index, self.state.batches[index]).calls
            groups: dict[tuple[int, ...], list[str]] = {}
            for name, inputs in calls.items():
                groups.setdefault(inputs, []).append(name.removeprefix(stage.name))
            self._groups[kind] = None if any(len(inputs) > 1 for inputs in groups) else list(groups.values())
        found = self._groups[kind]
        return None if found is None else [[stage.name + name for name in group] for group in found]

    def advance(self, name: str) -> None:
        """Hand every batch that waits at the block its output, from the block as it is now."""
        for index in [place for both in self.at(name) for place in (both, ~both) if place in self.frames.waiting]:
            with self._named(index):
                self._go_on(index)
            self._rest(index)

    def finish(self) -> Iterator[int]:
        """Run every batch to the end of its forward."""
        for index in sorted(place for place in self.frames.waiting if place >= 0):
            for place in (~index, index) if self.state.compares else (index,):
                with self._named(place):
                    while place in self.frames.waiting:
                        self._go_on(place)
                yield place

    def _run(self, index: int) -> Any:
        """The output of the block that a batch waits at; None if nobody looks at the end of it."""
        call = self.frames.waiting[index]
        with self.room.taken(call.args, call.kwargs), self._named(index):
            return self.frames.run(call)
        return None

    def _go_on(self, index: int) -> None:
        """Hand a batch the output of its block; what its forward may use now is where it belongs."""
        call = self.frames.waiting[index]
        if index < 0 and index not in self._outputs:
            raise CalibrationError(
                f"{call.name} runs twice in one forward, so its inputs cannot be compared with the original's"
            )
        self.room.take(call.args, call.kwargs)
        output = self._outputs.pop(index) if index in self._outputs else self.frames.run(call)
        self.room.take(output)
        self.frames.resume(index, output)

    def _rest(self, index: int) -> None:
        """Put aside what a batch is going to call a block with."""
        call = self.frames.waiting.get(index)
        if call is not None:
            self.room.put(call.args, call.kwargs)

    def _named(self, index: int) -> AbstractContextManager[None]:
        place = index if index >= 0 else ~index
        return batch_named(place, self.state.batches[place])
