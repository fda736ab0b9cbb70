"""The calibration batches of a `sequential` run, each suspended in front of a block or inside of one."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from attrs import define, field
from torch import Tensor, nn

from coldpress.plugin import AttentionInput, CalibrationError, Call, InputTap, Layer, Pass, Stage, State
from coldpress_pipelines.frames import Frames, Suspended
from coldpress_pipelines.offload import Offload
from coldpress_pipelines.walking import batch_named, placed


@define(eq=False)
class SuspendedBatches:
    """All batches, block by block through the model's own forward.

    Attributes:
        state: whose batches they are.
        frames: their suspended forwards; a batch has a second one where it also runs through the original blocks.
        room: where their activations are offloaded to.
        part: layers inside of a block that are calibrated now; None outside of a block.
        keeps: whether batches resume with what the block outputs when it is swept, before it is compressed.
    """

    state: State
    frames: Frames
    room: Offload
    part: Mapping[str, nn.Module] | None = None
    keeps: bool = False
    _outputs: dict[Pass, Any] = field(factory=dict)  # of blocks, until their forwards resume
    _groups: dict[Any, list[list[str]] | None] = field(factory=dict)  # kind of block -> layers that share inputs

    def start(self) -> None:
        """Run every batch to its first block."""
        for index, batch in self.state.share.batches(self.state.batches):
            for one in self._passes(index):
                with self._named(one):
                    self.frames.start(one, placed(batch, self.frames.model))
                self._offload(one)

    def run_prologue(self) -> Iterator[Pass]:
        """Run every batch to its first block, and drop it there."""
        for index, batch in self.state.share.batches(self.state.batches):
            one = Pass(index)
            with self._named(one):
                self.frames.start(one, placed(batch, self.frames.model))
            self.frames.drop()
            yield one

    def reached(self) -> set[str]:
        """Blocks and layers at which a forward is suspended."""
        return {call.name for call in self.frames.waiting.values()}

    def at(self, name: str, *, original: bool = False) -> list[Pass]:
        """The forwards that are suspended at a block or layer, in the order of the batches."""
        found = [one for one, call in self.frames.waiting.items() if call.name == name and one.original is original]
        return sorted(found, key=lambda one: one.index)

    def bytes_at(self, name: str) -> int:
        """Of the tensors that a block is about to be called with, all batches together; positions and masks are not."""
        firsts = [
            call.args[:1] or tuple(call.kwargs.values())[:1]
            for one, call in self.frames.waiting.items()
            if call.name == name and self.state.share.owns(one.index)
        ]
        own = sum(x.nbytes for (x,) in firsts if isinstance(x, Tensor))
        return self.state.share.total(f"{name}: bytes of what it is called with", own)

    def calls(self, name: str, *, original: bool, batches: Collection[int] | None) -> Iterator[Call]:
        """What the block is called with, batch by batch."""
        for one in self.at(name, original=original):
            if batches is None or one.index in batches:
                call = self.frames.waiting[one]
                with self.room.taken(call.args, call.kwargs):
                    yield Call(one.index, call.args, call.kwargs, self.frames.forward_of(name))

    def run_block(self, name: str) -> Iterator[Pass]:
        """Run the block on every batch that is suspended at it."""
        for one in self._at_both(name):
            if (self.keeps or one.original) and one not in self._outputs:
                self._keep(one)
            else:
                self._run(one, self.frames.run)
            yield one

    def keep_outputs(self, name: str) -> None:
        """Keep what the block outputs now, for forwards that resume after it is dropped."""
        for one in self.at(name):
            if one not in self._outputs:
                self._keep(one)

    def layer_by_layer(
        self, stage: Stage, layers: Sequence[Layer], attention: Mapping[str, nn.Module]
    ) -> Iterator[Stage]:
        """Run every batch through a block from layer to layer; layers that share an input are a part of the stage.

        Args:
            stage: the block.
            layers: of it that are observed.
            attention: modules of it whose attention is observed, by name; each is a part.
        """
        groups = self._input_groups(stage, layers, attention)
        if groups is None:  # a layer or attention runs twice
            yield stage
            return
        left = {**{layer.name: layer.module for layer in layers}, **attention}
        try:
            self.part = {}  # of what is not observed
            yield Stage(stage.name, stage.index, {n: m for n, m in stage.modules.items() if n not in left})
            with self.frames.stopping_at({layer.name: layer.module for layer in layers}, attention):
                self._enter(*self._at_both(stage.name))
                while found := [name for name in left if name in self.reached()]:
                    first = found[0]
                    group = next((group for group in groups if first in group), [first])
                    self.part = {name: left.pop(name) for name in [first, *group] if name in left}
                    yield Stage(stage.name, stage.index, self.part)
                    self.frames.pass_on(list(self.part))
                    self._enter(*self.at(first))
            if left:  # no batch calls these
                self.part = left
                yield Stage(stage.name, stage.index, left)
        finally:
            self.part = None

    def run_part(self) -> Iterator[Pass]:
        """Call the layers of the part with what every batch that is suspended at it has for them.

        The original forward runs through them, as long as they are what they were.
        """
        assert self.part
        passes = self._at_both(next(iter(self.part)))
        if self.state.sweep.original_inputs:
            self.frames.pass_on(list(self.part))
        for one in passes:
            if one.original:
                self._enter(one)
            else:
                call = self.frames.waiting[one]
                with self.room.taken(call.args, call.kwargs), self._named(one):
                    self.frames.call_hooks(one, self.part)
            yield one

    def run_to_end_of_block(self) -> None:
        """Run every batch that is suspended inside of a block to its end."""
        for one in list(self.frames.waiting):
            if self.frames.waiting[one].name not in self.frames.blocks:
                self._resume_inside(one)
            call = self.frames.waiting[one]
            if call.outputs:
                (self._outputs[one],) = call.outputs
                self.room.put(self._outputs[one])

    def advance(self, name: str) -> None:
        """Resume every batch that is suspended at the block with its output, from the block as it is now."""
        for index in [one.index for one in self.at(name)]:
            for one in (Pass(index), Pass(index, original=True)):
                if one in self.frames.waiting:
                    with self._named(one):
                        self._resume(one)
                    self._offload(one)

    def run_epilogue(self) -> Iterator[Pass]:
        """Run every batch to the end of its forward."""
        for index in sorted(one.index for one in self.frames.waiting if not one.original):
            for one in self._passes(index):
                with self._named(one):
                    while one in self.frames.waiting:
                        self._resume(one)
                yield one

    def _passes(self, index: int) -> tuple[Pass, ...]:
        """The runs of one batch: in the original model first, where that is compared with."""
        both = (Pass(index, original=True), Pass(index))
        return both if self.state.sweep.original_inputs else both[1:]

    def _at_both(self, name: str) -> list[Pass]:
        """The forwards at a block or layer, each after that of the original model where there is one.

        Raises:
            CalibrationError: a batch is at another place in the original model.
        """
        here = {one.index for one in self.at(name)}
        if self.state.sweep.original_inputs:
            there = {one.index for one in self.at(name, original=True)}
            if apart := there.symmetric_difference(here):
                raise CalibrationError(
                    f"batch {min(apart)} does not take the way through the model that it took in the original, at "
                    f"{name}"
                )
        return [one for index in sorted(here) for one in self._passes(index)]

    def _enter(self, *passes: Pass) -> None:
        for one in passes:
            self._resume_inside(one)
            self._offload(one)

    def _resume_inside(self, one: Pass) -> None:
        """Let a forward run what it is suspended at by itself, to the next place where it stops."""
        call = self.frames.waiting[one]
        self.room.take(call.args, call.kwargs)
        with self._named(one):
            self.frames.enter(one)

    def _input_groups(
        self, stage: Stage, layers: Sequence[Layer], attention: Mapping[str, nn.Module]
    ) -> list[list[str]] | None:
        """Names of layers that read the same input; None where a layer or attention is called twice.

        The first batch that is suspended at the block tells; blocks of the same class and layers are alike.
        """
        points: list[Layer | AttentionInput] = list(layers)
        points += [AttentionInput(name, module, "keys") for name, module in attention.items()]
        inside = [point.name.removeprefix(stage.name) for point in points]
        kind = (type(self.frames.blocks[stage.name]), *inside)
        if kind not in self._groups:
            first = self.at(stage.name)[0]
            with InputTap(points) as tap:
                self._run(first, self.frames.run)
                calls = tap.collect(first.index, self.state.batches[first.index]).calls
            groups: dict[tuple[int, ...], list[str]] = {}
            for name, inputs in calls.items():
                groups.setdefault(inputs, []).append(name.removeprefix(stage.name))
            self._groups[kind] = None if any(len(inputs) > 1 for inputs in groups) else list(groups.values())
        found = self._groups[kind]
        return None if found is None else [[stage.name + name for name in group] for group in found]

    def _keep(self, one: Pass) -> None:
        """Keep the output of the block that a forward is suspended at, if its end is reached."""
        output = self._run(one, self.frames.run_for_good)
        if output is not None:
            self._outputs[one] = output
            self.room.put(output)

    def _run(self, one: Pass, run: Callable[[Suspended], Any]) -> Any:
        """The output of the block that a forward is suspended at; None if its end is not reached."""
        call = self.frames.waiting[one]
        with self.room.taken(call.args, call.kwargs), self._named(one):
            return run(call)
        return None

    def _resume(self, one: Pass) -> None:
        """Resume a forward with the output of its block; what it may use now is where the model is."""
        call = self.frames.waiting[one]
        if one.original and one not in self._outputs:
            raise CalibrationError(
                f"{call.name} runs twice in one forward, so its inputs cannot be compared with the original's"
            )
        self.room.take(call.args, call.kwargs)
        output = self._outputs.pop(one) if one in self._outputs else self.frames.run_for_good(call)
        self.room.take(output)
        self.frames.resume(one, output)

    def _offload(self, one: Pass) -> None:
        """Offload what a forward is going to call a block with."""
        call = self.frames.waiting.get(one)
        if call is not None:
            self.room.put(call.args, call.kwargs)

    def _named(self, one: Pass) -> AbstractContextManager[None]:
        return batch_named(one.index, self.state.batches[one.index])
