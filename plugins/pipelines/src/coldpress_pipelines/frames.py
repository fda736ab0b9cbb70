"""Suspended forwards: the model's own forward, one greenlet a batch, stopped at the door of every block."""

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import greenlet
from attrs import define, field, frozen
from torch import nn


@frozen(eq=False)
class Call:
    """A block that a suspended forward is about to run.

    Attributes:
        block: name of the block.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """

    block: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@define(eq=False)
class Frames:
    """The forwards of all batches, each waiting at a block or finished; a context that leaves nothing behind.

    Attributes:
        model: whose forward runs, unchanged.
        blocks: name to module, of the modules to stop at.
        waiting: batch index to the call that it waits at; a batch whose forward has ended is not in it.
    """

    model: nn.Module
    blocks: Mapping[str, nn.Module]
    waiting: dict[int, Call] = field(factory=dict)
    _forwards: dict[str, Callable[..., Any]] = field(factory=dict)
    _frames: dict[int, Any] = field(factory=dict)
    _driver: Any = None

    def __enter__(self) -> "Frames":
        self._driver = greenlet.getcurrent()
        for name, block in self.blocks.items():
            self._forwards[name] = block.forward
            block.forward = self._door(name, block.forward)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()
        for block in self.blocks.values():
            block.__dict__.pop("forward", None)  # what was set on the instance; the class's own is seen again

    def start(self, index: int, batch: Mapping[str, Any]) -> None:
        """Begin the forward of a batch and run it to its first block, or to its end."""
        frame = greenlet.greenlet(lambda: self.model(**batch), parent=self._driver)
        self._frames[index] = frame
        self._wait(index, frame.switch())

    def resume(self, index: int, output: Any) -> None:
        """Hand a waiting forward the output of its block, and run it to the next one, or to its end."""
        del self.waiting[index]
        self._wait(index, self._frames[index].switch(output))

    def run(self, call: Call) -> Any:
        """The output of the block for these arguments, from the block as it is now."""
        return self._forwards[call.block](*call.args, **call.kwargs)

    def drop(self, indices: Sequence[int] | None = None) -> None:
        """Unwind forwards that wait, all of them or some; their `finally` blocks and contexts are left in order."""
        for index in list(self._frames) if indices is None else indices:
            frame = self._frames.pop(index)
            self.waiting.pop(index, None)
            if not frame.dead:
                frame.throw(greenlet.GreenletExit)

    def _wait(self, index: int, said: Any) -> None:
        if self._frames[index].dead:
            del self._frames[index]
        else:
            self.waiting[index] = said

    def _door(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def stop_here(*args: Any, **kwargs: Any) -> Any:
            if greenlet.getcurrent() is self._driver:
                return forward(*args, **kwargs)
            return self._driver.switch(Call(name, args, kwargs))

        return stop_here
