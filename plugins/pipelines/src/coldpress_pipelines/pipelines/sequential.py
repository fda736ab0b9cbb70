"""sequential: block by block through the model's own forward, every batch suspended at the same block."""

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

from attrs import field, frozen
from attrs.validators import ge, in_
from torch import nn

from coldpress.plugin import (
    Call,
    LossGradient,
    Outline,
    Pass,
    Pipeline,
    ReverseStep,
    Stage,
    State,
    block_names,
    count_places,
    partition,
)
from coldpress_pipelines.frames import Frames
from coldpress_pipelines.gaps import gaps_of, with_gaps
from coldpress_pipelines.offload import DEFAULT_LIMIT, PLACES, Offload, Place
from coldpress_pipelines.reverse import ReverseBatches
from coldpress_pipelines.suspended import SuspendedBatches
from coldpress_pipelines.walking import HOW, as_list, matters, model_calls, refuse_unreached, whole_backwards

log = logging.getLogger(__name__)

_SMALL = 1 << 28  # bytes in front of a block that may be several times as many inside of it


@frozen(kw_only=True, eq=False)
class Sequential(Pipeline):
    """One stage a block; a batch waits in front of a block until the block is compressed.

    The model's own `forward` runs, unchanged, one greenlet a batch: nothing is traced, no architecture is known by
    name.  A block that a batch skips is compressed without it; one that runs twice is compressed at its first visit.
    What lies between two lists of blocks, such as the projector of a vision-language model, is a stage like a block
    where its layers are observed.

    Inside a block, layers that read the same input are compressed as soon as every batch has reached them, so each
    layer sees the outputs of the compressed ones before it, and every batch runs through a block once.
    Where that cannot be (a modifier transforms it, experts, outputs of the original are wanted), a block is run once
    to look and once to go on.  Where a modifier compares, every batch goes through the model twice, side by side: once
    more through the blocks as they were.

    Attributes:
        sequential_targets: blocks to stop at, by name, `re:` pattern or class; None finds the model's lists of blocks.
        propagate_error: later blocks see the outputs of compressed ones; False shows them the original's outputs, None
            does so where no modifier makes use of the others and `true_sequential` is not asked for.
        true_sequential: True leads batches through a block from layer to layer; False compresses a block as a whole.
            A batch that waits inside of a block keeps what its forward holds there, several times what it is called
            with, on the device where it is: None does so on the CPU, for up to 256 MiB of inputs of the block.
        offload_activations: where activations wait between two stages: "auto", on a CUDA device while half of its
            memory is free, else in CPU memory; "cpu", in CPU memory; or "disk", in files beyond the limit.
        offload_limit: bytes of activations that "disk" leaves in memory.
    """

    runs_original: ClassVar[bool] = True
    holds_calls: ClassVar[bool] = True
    runs_backwards: ClassVar[bool] = True

    sequential_targets: list[str] | None = field(default=None, converter=as_list)
    propagate_error: bool | None = None
    true_sequential: bool | None = None
    offload_activations: Place = field(default="auto", validator=in_(PLACES))
    offload_limit: int = field(default=DEFAULT_LIMIT, validator=ge(0))

    def stages(self, state: State) -> Iterator[Stage]:
        """Yield the prologue, the blocks in the order in which batches reach them, and the rest."""
        parts = self._parts_of(state)
        blocks = self._blocks_of(state, parts)
        if not blocks:
            log.warning(
                "%s has no list of blocks, so it is one stage; name them with %s", type(state.model).__name__, HOW
            )
        room = Offload.of(state, place=self.offload_activations, limit=self.offload_limit)
        with room, Frames(state.model, blocks) as frames:
            state.pipeline_state = suspended = SuspendedBatches(state, frames, room)
            try:
                if "prologue" in parts:
                    yield parts.pop("prologue")
                yield from self._blocks_in_order(state, suspended, parts)
                yield from parts.values()
            finally:
                state.pipeline_state = None

    def outline(self, state: State, *, divisible: bool = False) -> Outline:
        """The parts of the model; a batch runs through a block once where it is led from layer to layer, else twice."""
        follows, original = self._follows(state), state.sweep.original_inputs
        in_parts = divisible and follows and self._wants_parts(state)
        forwards = 1.0 if in_parts or not follows else 2.0
        return Outline(
            stages=tuple(self._parts_of(state).values()),
            forwards=forwards + (1.0 if original else 0.0),
            in_parts=in_parts,
            keeps_outputs=not follows,
            on_disk=self.offload_activations == "disk",
        )

    def count(self, state: State) -> int:
        """As many as the model has parts."""
        return len(self._parts_of(state))

    def parts(self, state: State, stage: Stage) -> Iterator[Stage]:
        """Yield what is not observed, and then the layers of a block, those that read the same input together."""
        suspended: SuspendedBatches = state.pipeline_state
        observed = {name: module for name, module in stage.modules.items() if name in state.sweep.observed}
        layers = [layer for layer in stage.every_layer if observed.pop(layer.name, None) is not None]
        inside = [layer for layer in layers if layer.name != stage.name]
        if inside and suspended.at(stage.name) and self._leads_through(suspended, stage):
            yield from suspended.layer_by_layer(stage, layers, attention=observed)
        else:
            yield stage

    def sweep(self, state: State, stage: Stage) -> Iterator[Pass]:
        """Run the stage on every batch that is suspended at it; what is not observed is not computed."""
        suspended: SuspendedBatches = state.pipeline_state
        if suspended.part is not None:
            yield from suspended.run_part()
        elif stage.name in ("prologue", "model"):
            yield from suspended.run_prologue()
        elif stage.name in suspended.frames.blocks:
            yield from suspended.run_block(stage.name)
        else:
            yield from suspended.run_epilogue()

    def calls(
        self, state: State, stage: Stage, *, original: bool = False, batches: Collection[int] | None = None
    ) -> Iterator[Call]:
        """Yield what a block is called with, or the model where it has no blocks."""
        suspended: SuspendedBatches = state.pipeline_state
        if stage.name == "model":
            yield from model_calls(state, batches)
        elif stage.name not in suspended.frames.blocks:
            yield from super().calls(state, stage, original=original, batches=batches)
        else:
            yield from suspended.calls(stage.name, original=original, batches=batches)

    def needs_sweep(self, state: State, stage: Stage) -> bool:
        """Where later blocks, or statistics of original inputs, see what the original outputs."""
        suspended: SuspendedBatches = state.pipeline_state
        looks = state.sweep.original_inputs and stage.name in suspended.frames.blocks and suspended.part != {}
        return suspended.keeps or looks

    def reverse_sweep(self, state: State, loss: LossGradient) -> Iterator[ReverseStep]:
        """Yield prologue and blocks, and then the rest and the blocks in reverse order."""
        parts = self._parts_of(state)
        blocks = self._blocks_of(state, parts)
        if not blocks:
            yield ReverseStep(parts["model"], whole_backwards(state, loss))
            return
        room = Offload.of(state, place=self.offload_activations, limit=self.offload_limit)
        with room, Frames(state.model, blocks) as frames:
            batches, order = ReverseBatches(state, frames, room, loss), list[str]()
            if "prologue" in parts:
                yield ReverseStep(parts["prologue"])
            batches.start()
            while found := [name for name in blocks if name in batches.reached()]:
                order.append(found[0])
                yield ReverseStep(parts[found[0]])
                batches.run(found[0])
                if len(set(order)) < len(blocks):
                    batches.advance()
            unseen = {name: parts[name] for name in blocks if name not in order}
            if unseen:
                refuse_unreached(list(unseen), unseen, state)
            yield ReverseStep(parts.get("epilogue", Stage("epilogue", len(parts), {})), batches.end_backwards())
            for name, passes in batches.again_backwards():
                yield ReverseStep(parts[name], passes)
            for name in reversed(order):
                yield ReverseStep(parts[name], batches.backwards(name))

    def _blocks_of(self, state: State, parts: Mapping[str, Stage]) -> dict[str, nn.Module]:
        names = {*block_names(state.model, self.sequential_targets), *gaps_of(parts)}
        return {name: module for name, module in state.model.named_modules() if name in names}

    def _parts_of(self, state: State) -> dict[str, Stage]:
        parts = {part.name: part for part in partition(state.model, self.sequential_targets)}
        return with_gaps(parts, state.sweep.observed)

    def _follows(self, state: State) -> bool:
        """Whether batches see what is compressed; to ask for `true_sequential` is to ask for it."""
        by_itself = state.sweep.propagated_error or bool(self.true_sequential)
        return by_itself if self.propagate_error is None else self.propagate_error

    def _leads_through(self, suspended: SuspendedBatches, stage: Stage) -> bool:
        if not self._follows(suspended.state):
            return False
        if self.true_sequential is not None:
            return self.true_sequential
        on_cpu = all(layer.weight.device.type == "cpu" for layer in stage.every_layer)
        return on_cpu and suspended.bytes_at(stage.name) <= _SMALL

    def _wants_parts(self, state: State) -> bool:
        """What `_leads_through` will say, as far as sizes tell before a batch runs."""
        if self.true_sequential is not None:
            return self.true_sequential
        find: Any = getattr(state.model, "get_input_embeddings", None)
        width = getattr(find() if callable(find) else None, "embedding_dim", 0)
        places = sum(count_places(batch) or 0 for batch in state.batches)
        weights = next((p for p in state.model.parameters()), None)
        if weights is None or weights.device.type not in ("cpu", "meta"):
            return False
        return places * width * weights.dtype.itemsize <= _SMALL

    def _blocks_in_order(self, state: State, suspended: SuspendedBatches, parts: dict[str, Stage]) -> Iterator[Stage]:
        """Yield every block that is reached; at what is left in `parts` afterwards no batch is suspended."""
        if suspended.frames.blocks and matters(parts, state):
            suspended.start()
        while suspended.frames.waiting:
            name = next(name for name in suspended.frames.blocks if name in suspended.reached())
            stage = parts.pop(name, None)
            if stage is not None:
                suspended.keeps = not self._follows(state) and matters(parts, state)
                yield stage
                suspended.keeps = False
            if not matters(parts, state):
                suspended.frames.drop()
                break
            suspended.run_to_end_of_block()
            if any(block in parts for block in suspended.frames.blocks):
                suspended.advance(name)
            else:  # what follows is the epilogue: it is run while it is observed
                suspended.keep_outputs(name)
                return
        unseen = [name for name in suspended.frames.blocks if name in parts]
        if unseen:
            refuse_unreached(unseen, parts, state)
