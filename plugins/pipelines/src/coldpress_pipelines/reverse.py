"""The reverse sweep of a `sequential` run: blocks one after the other, forwards, and then from the last to the first.

The graph of a batch is cut at every block.  A block runs without autograd, and what it outputs are leaves with which
the model's own forward goes on, recorded:

    leaves of block 1 ──(what the model does between blocks)──> arguments of block 2     block 2 ──> leaves of block 2

On the way back a block is replayed on its arguments with autograd; the gradients of its arguments go through what lies
between blocks to the leaves of earlier ones, whichever these are.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from coldpress.plugin import CalibrationError, LossGradient, Pass, State
from coldpress_pipelines.caches import holds_keys
from coldpress_pipelines.frames import Frames, Suspended
from coldpress_pipelines.offload import Offload
from coldpress_pipelines.walking import batch_named, placed


@frozen(eq=False)
class Visit:
    """One run of a block on a batch.

    Attributes:
        place: the batch.
        call: the block and its arguments, in the graph of what lies before it.
        leaves: its floating-point outputs, without a graph.
    """

    place: Pass
    call: Suspended
    leaves: tuple[Tensor, ...]


@define(eq=False)
class ReverseBatches:
    """All batches, block by block forwards with what they are called with kept, and backwards.

    Attributes:
        state: whose batches they are.
        frames: their suspended forwards.
        room: where their activations are offloaded to.
        loss: what the gradient of the logits is.
    """

    state: State
    frames: Frames
    room: Offload
    loss: LossGradient
    _visits: dict[str, list[Visit]] = field(factory=dict)  # of the first round of blocks, by name, in order
    _again: dict[Pass, list[Visit]] = field(factory=dict)  # of blocks that run once more after all of them ran
    _leaves: dict[Pass, list[Tensor]] = field(factory=dict)  # in the order in which they were made
    _gradients: dict[int, Tensor] = field(factory=dict)  # of leaves, by identity
    _outputs: dict[Pass, Any] = field(factory=dict)  # that a forward resumes with

    def start(self) -> None:
        """Run every batch to its first block."""
        for index, batch in enumerate(self.state.batches):
            with self._named(Pass(index)), torch.enable_grad():
                self.frames.start(Pass(index), placed(batch, self.frames.model))
            self._offload(Pass(index))

    def reached(self) -> set[str]:
        """Blocks at which a forward is suspended with no output yet."""
        return {call.name for place, call in self.frames.waiting.items() if place not in self._outputs}

    def run(self, name: str) -> None:
        """Run a block on every batch that is suspended at it, and keep what it is called with and outputs."""
        for place, call in list(self.frames.waiting.items()):
            if call.name == name and place not in self._outputs:
                self._visits.setdefault(name, []).append(self._visit(place, call))

    def advance(self) -> None:
        """Resume every batch whose block has run, to its next one."""
        for place in list(self._outputs):
            self._resume(place)
            self._offload(place)

    def end_backwards(self) -> Iterator[Pass]:
        """Run every batch to its end, and from the gradient of the logits back to the outputs of blocks."""
        for place in sorted(self._outputs, key=lambda one: one.index):
            output = None
            while place in self.frames.waiting:
                if place not in self._outputs:  # a block once more
                    self._again.setdefault(place, []).append(self._visit(place, self.frames.waiting[place]))
                output = self._resume(place)
            with self._named(place):
                logits, gradient = self.loss(place.index, output)
                self._pass_back(self._leaves[place], [logits], [gradient])
            yield place
        self.room.put(list(self._gradients.values()))

    def again_backwards(self) -> Iterator[tuple[str, Iterator[Pass]]]:
        """The blocks that ran once more after all of them had, last first, and their replay."""
        while any(self._again.values()):
            deepest = max(len(visits) for visits in self._again.values())
            name = next(visits[-1].call.name for visits in self._again.values() if len(visits) == deepest)
            at_end = [visits for visits in self._again.values() if visits and visits[-1].call.name == name]
            yield name, self._replays([visits.pop() for visits in at_end if len(visits) == deepest])

    def backwards(self, name: str) -> Iterator[Pass]:
        """Replay a block on every batch."""
        yield from self._replays(self._visits.pop(name, []))

    def _replays(self, visits: list[Visit]) -> Iterator[Pass]:
        for visit in visits:
            self._replay(visit)
            yield visit.place

    def _visit(self, place: Pass, call: Suspended) -> Visit:
        """Run a block without autograd; its outputs become leaves."""
        before = _written(call)
        with self.room.taken(call.args, call.kwargs), self._named(place), torch.no_grad():
            output = self.frames.run_for_good(call)
        if _written(call) != before:
            raise CalibrationError(
                f"{call.name} writes into an argument, such as a cache that later blocks read, so gradients through it "
                "would be lost: leave guidance out"
            )
        leaves: list[Tensor] = []
        self._outputs[place] = tree_map(lambda x: _leaf(x, leaves), output)
        self._leaves.setdefault(place, []).extend(leaves)
        self.room.put(leaves)
        return Visit(place, call, tuple(leaves))

    def _resume(self, place: Pass) -> Any:
        """Resume a forward with the output of its block; what the model outputs if it ends."""
        call, output = self.frames.waiting[place], self._outputs.pop(place)
        self.room.take(call.args, call.kwargs, output)
        with self._named(place), torch.enable_grad():
            return self.frames.resume(place, output)

    def _replay(self, visit: Visit) -> None:
        """Run a block again with autograd, and pass the gradients of its arguments on."""
        found = [self._gradients.pop(id(leaf), None) for leaf in visit.leaves]
        self._leaves[visit.place] = [one for one in self._leaves[visit.place] if not _is_in(one, visit.leaves)]
        call, inputs, roots = visit.call, list[Tensor](), list[Tensor]()
        if all(one is None for one in found):
            return
        with self.room.taken(call.args, call.kwargs), self._named(visit.place), torch.enable_grad():
            self.room.take(found)
            args, kwargs = tree_map(lambda x: _root(x, inputs, roots), (call.args, call.kwargs))
            output = self.frames.forward_of(call.name)(*args, **kwargs)
            outputs = [x for x in tree_flatten(output)[0] if _is_floating(x)]
            pairs = [(y, g) for y, g in zip(outputs, found, strict=True) if g is not None and y.requires_grad]
            if pairs:
                torch.autograd.backward([y for y, _ in pairs], [g for _, g in pairs])
            reached = [(x, root.grad) for x, root in zip(inputs, roots, strict=True) if root.grad is not None]
            self._pass_back(self._leaves[visit.place], [x for x, _ in reached], [g for _, g in reached])

    def _pass_back(self, leaves: list[Tensor], outputs: list[Tensor], gradients: list[Any]) -> None:
        """Add to the gradients of leaves what they get by way of `outputs`, which what lies between made of them."""
        if not outputs or not leaves:
            return
        found = torch.autograd.grad(outputs, leaves, gradients, retain_graph=True, allow_unused=True)
        for leaf, gradient in zip(leaves, found, strict=True):
            if gradient is not None:
                before = self._gradients.get(id(leaf))
                self.room.take([before])
                whole = gradient.detach() if before is None else before + gradient
                self._gradients[id(leaf)] = whole
                self.room.put([whole])

    def _offload(self, place: Pass) -> None:
        call = self.frames.waiting.get(place)
        if call is not None:
            self.room.put(call.args, call.kwargs)

    def _named(self, place: Pass) -> AbstractContextManager[None]:
        return batch_named(place.index, self.state.batches[place.index])


def _leaf(x: Any, leaves: list[Tensor]) -> Any:
    """A floating-point output as a leaf, noted; anything else as it is."""
    if not _is_floating(x):
        return x
    leaves.append(x.detach().requires_grad_())
    return leaves[-1]


def _root(x: Any, inputs: list[Tensor], roots: list[Tensor]) -> Any:
    """An argument that has a gradient as a leaf of its own, once for each tensor; anything else as it is."""
    if not isinstance(x, Tensor) or not x.requires_grad:
        return x
    for known, root in zip(inputs, roots, strict=True):
        if known is x:
            return root
    inputs.append(x)
    roots.append(x.detach().requires_grad_())
    return roots[-1]


def _is_floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _is_in(x: Tensor, tensors: tuple[Tensor, ...]) -> bool:
    return any(x is one for one in tensors)


def _written(call: Suspended) -> list[Any]:
    """What shows whether a block has written into an argument that is no tensor: a cache, or a table of tensors."""
    values = (*call.args, *call.kwargs.values())
    tables = [sorted((str(key), id(value)) for key, value in one.items()) for one in values if isinstance(one, Mapping)]
    return [*tables, *(holds_keys(one) for one in values)]
