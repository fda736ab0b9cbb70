"""sequential: block by block through the model's own forward, every batch waiting at the same door."""

from collections.abc import Iterator
from typing import Any

from attrs import frozen

from coldpress import CalibrationError, Pipeline, Stage, State, block_names, partition
from coldpress_pipelines.frames import Frames
from coldpress_pipelines.walking import batch_named, matters, refuse_gaps


@frozen(kw_only=True, eq=False)
class Sequential(Pipeline):
    """One stage a block; a batch waits in front of a block until the block is compressed.

    The model's own `forward` runs, unchanged, one greenlet a batch: nothing is traced, no architecture is known by
    name.  A block that a batch skips is compressed without it; one that runs twice is compressed at its first visit.
    Layers between two lists of blocks are not observed: calibrate those with `basic`.

    Attributes:
        sequential_targets: blocks to stop at, by name, `re:` pattern or class; None finds the model's lists of blocks.
        propagate_error: later blocks see what compressed ones put out; False shows them the original's outputs.
    """

    sequential_targets: list[str] | None = None
    propagate_error: bool = True

    def stages(self, state: State) -> Iterator[Stage]:
        """Yield the prologue, the blocks in the order in which batches reach them, and the rest."""
        parts = {part.name: part for part in partition(state.model, self.sequential_targets)}
        names = block_names(state.model, self.sequential_targets)
        blocks = {name: state.model.get_submodule(name) for name in names}
        refuse_gaps(parts, blocks, state)
        with Frames(state.model, blocks) as frames:
            state.walk = walk = _Walk(frames)
            try:
                if "prologue" in parts:
                    yield parts.pop("prologue")
                yield from self._blocks_in_order(state, walk, parts)
                yield from parts.values()
            finally:
                state.walk = None

    def count(self, state: State) -> int:
        """As many as the model has parts."""
        return len(partition(state.model, self.sequential_targets))

    def sweep(self, state: State, stage: Stage) -> Iterator[int]:
        """Run the stage on every batch that waits at it; what nobody observes is not computed."""
        walk: _Walk = state.walk
        if stage.name in ("prologue", "model"):
            yield from walk.rehearse(state)
        elif stage.name in walk.frames.blocks:
            yield from walk.visit(stage.name)
        else:
            yield from walk.finish()

    def _blocks_in_order(self, state: State, walk: "_Walk", parts: dict[str, Stage]) -> Iterator[Stage]:
        """Yield every block that is reached; what is left in `parts` afterwards nobody waits at any more."""
        if walk.frames.blocks and matters(parts, state):
            walk.start(state)
        while walk.frames.waiting:
            name = next(name for name in walk.frames.blocks if name in walk.doors())
            stage = parts.pop(name, None)
            if stage is not None:
                if not self.propagate_error:
                    walk.remember(name)
                yield stage
            if not matters(parts, state):
                walk.frames.drop()
            elif any(block in parts for block in walk.frames.blocks):
                walk.advance(name)
            else:  # what follows is the epilogue: it is run while it is observed
                walk.hold(name)
                return
        unseen = [name for name in walk.frames.blocks if name in parts]
        if unseen and matters(parts, state):
            raise CalibrationError(
                f"no calibration batch runs {', '.join(unseen)}; ignore their layers, or say with sequential_targets "
                "which blocks run"
            )


class _Walk:
    """The batches on their way: their suspended forwards, and outputs that are not handed back yet."""

    def __init__(self, frames: Frames) -> None:
        self.frames = frames
        self._outputs: dict[int, Any] = {}

    def start(self, state: State) -> None:
        """Run every batch to its first block."""
        for index, batch in enumerate(state.batches):
            with batch_named(index):
                self.frames.start(index, batch)

    def rehearse(self, state: State) -> Iterator[int]:
        """Run the beginning of every batch, and drop it."""
        for index, batch in enumerate(state.batches):
            with batch_named(index):
                self.frames.start(index, batch)
            self.frames.drop()
            yield index

    def doors(self) -> set[str]:
        """Blocks at which somebody waits."""
        return {call.block for call in self.frames.waiting.values()}

    def at(self, name: str) -> list[int]:
        """The batches that wait at a block, in order."""
        return sorted(index for index, call in self.frames.waiting.items() if call.block == name)

    def visit(self, name: str) -> Iterator[int]:
        """Run the block on every batch that waits at it; the output is dropped."""
        for index in self.at(name):
            with batch_named(index):
                self.frames.run(self.frames.waiting[index])
            yield index

    def remember(self, name: str) -> None:
        """Keep what the block puts out now, to hand it back after the block is compressed."""
        self._outputs.update((index, self._run(index)) for index in self.at(name))

    def advance(self, name: str) -> None:
        """Hand every batch that waits at the block its output, from the block as it is now."""
        for index in self.at(name):
            with batch_named(index):
                self.frames.resume(index, self._take(index))

    def hold(self, name: str) -> None:
        """Compute outputs without handing them back."""
        self._outputs.update((index, self._take(index)) for index in self.at(name))

    def finish(self) -> Iterator[int]:
        """Run every batch to the end of its forward."""
        for index in sorted(self.frames.waiting):
            with batch_named(index):
                while index in self.frames.waiting:
                    self.frames.resume(index, self._take(index))
            yield index

    def _take(self, index: int) -> Any:
        return self._outputs.pop(index) if index in self._outputs else self._run(index)

    def _run(self, index: int) -> Any:
        return self.frames.run(self.frames.waiting[index])
