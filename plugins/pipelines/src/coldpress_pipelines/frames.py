"""Suspended forwards: the model's own forward, one greenlet a batch, suspended at every block.

A forward that is let into a block stops again in front of layers inside of it, and once more when the block is done.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import Context, copy_context
from types import TracebackType
from typing import Any

import greenlet
from attrs import define, field, frozen
from torch import nn

from coldpress.numerics import version
from coldpress.plugin import (
    AttentionStates,
    CalibrationError,
    Pass,
    StopForward,
    attention_tapped,
    run_attention_taps,
)
from coldpress_pipelines.caches import on_copies
from coldpress_pipelines.instance import replaced

_ENTER = object()  # tells a suspended forward to run the block itself


@frozen(eq=False)
class Suspended:
    """What a suspended forward is about to run: a block, or a layer inside of one.

    Attributes:
        name: of the block or layer.
        args: its positional arguments.
        kwargs: its keyword arguments.
        outputs: of a block that the forward has run by itself, its output; else nothing.
        context: of the forward; what is hooked to a block may look there where to record its output.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Any, ...] = ()
    context: Context = field(factory=copy_context)


@define(eq=False)
class Frames:
    """The forwards of all batches, each suspended at a block or finished; a context that leaves nothing behind.

    Attributes:
        model: whose forward runs, unchanged.
        blocks: name to module, of the modules to stop at.
        waiting: pass to the call that it waits at; one whose forward has ended is not in it.
    """

    model: nn.Module
    blocks: Mapping[str, nn.Module]
    waiting: dict[Pass, Suspended] = field(factory=dict)
    _forwards: dict[str, Callable[..., Any]] = field(factory=dict)
    _replaced: ExitStack = field(factory=ExitStack)
    _frames: dict[Pass, Any] = field(factory=dict)
    _driver: Any = None
    _stops: set[str] = field(factory=set)  # layers, and attention, to stop at
    _attention: set[str] = field(factory=set)
    _due: dict[Any, dict[str, tuple[Any, int]]] = field(factory=dict)  # frame -> layers to come -> input, its version

    def __enter__(self) -> "Frames":
        self._driver = greenlet.getcurrent()
        for name, block in self.blocks.items():
            call: Callable[..., Any] = block._call_impl  # what `block(...)` runs: its hooks, between them its forward
            self._forwards[name] = call
            self._replaced.enter_context(replaced(block, "_call_impl", self._suspend_at(name, call)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()
        self._replaced.close()

    def start(self, place: Pass, batch: Mapping[str, Any]) -> None:
        """Begin the forward of a batch and run it to its first block, or to its end."""
        frame = greenlet.greenlet(lambda: self.model(**batch), parent=self._driver)
        self._frames[place] = frame
        self._wait(place, frame.switch())

    def resume(self, place: Pass, output: Any) -> Any:
        """Hand a waiting forward the output of its block, and run it to the next one; at its end, what it returns."""
        del self.waiting[place]
        return self._wait(place, self._frames[place].switch(output))

    def run(self, call: Suspended) -> Any:
        """The output of the block for these arguments, from the block as it is now; it may run again."""
        return self.forward_of(call.name)(*call.args, **call.kwargs)

    def run_for_good(self, call: Suspended) -> Any:
        """The same, for the last time: a cache that the block is called with is filled, its output is recorded."""
        return call.context.run(self._forwards[call.name], *call.args, **call.kwargs)

    def forward_of(self, name: str) -> Callable[..., Any]:
        """The forward of a block, which is not suspended and may run any number of times."""
        return on_copies(self._forwards[name])

    @contextmanager
    def stopping_at(self, layers: Mapping[str, nn.Module], attention: Mapping[str, nn.Module]) -> Iterator[None]:
        """Inside, forwards that are let into a block stop in front of these layers of it, by name, hooks included.

        They also stop where attention of these modules is about to run, in front of all that acts there.
        """
        self._stops.update(layers, attention)
        self._attention.update(attention)
        with ExitStack() as calls:
            for name, layer in layers.items():
                calls.enter_context(replaced(layer, "_call_impl", self._stop_before(name, layer)))
            for name, module in attention.items():
                calls.enter_context(attention_tapped(module, self._stop_at_attention(name), first=True))
            try:
                yield
            finally:
                self._stops.clear()
                self._attention.clear()
                self._due.clear()

    def enter(self, place: Pass) -> None:
        """Let a waiting forward run what it waits at by itself, to the next stop."""
        del self.waiting[place]
        self._wait(place, self._frames[place].switch(_ENTER))

    def call_hooks(self, place: Pass, layers: Mapping[str, nn.Module]) -> None:
        """Suspended layers with what a forward is about to call the first of them with; nothing is computed."""
        call = self.waiting[place]
        if call.name in self._attention:
            with suppress(StopForward):
                run_attention_taps(layers[call.name], AttentionStates(*call.args))
            return
        for layer in layers.values():
            with suppress(StopForward, _Shown), _stub(layer):
                layer(*call.args, **call.kwargs)

    def pass_on(self, layers: Sequence[str]) -> None:
        """Stop in front of these layers no more; who waits at the first of them must call the others with the same."""
        self._stops.difference_update(layers)
        for place, call in self.waiting.items():
            if call.name in layers and call.args:
                due = self._due.setdefault(self._frames[place], {})
                due.update({name: _stamped(call.args[0]) for name in layers if name != call.name})

    def drop(self, places: Sequence[Pass] | None = None) -> None:
        """Unwind forwards that wait, all of them or some; their `finally` blocks and contexts are left in order."""
        for place in list(self._frames) if places is None else places:
            frame = self._frames.pop(place)
            self._due.pop(frame, None)
            self.waiting.pop(place, None)
            if not frame.dead:
                frame.throw(greenlet.GreenletExit)

    def _wait(self, place: Pass, answer: Any) -> Any:
        if self._frames[place].dead:
            del self._frames[place]
            return answer
        self.waiting[place] = answer
        return None

    def _suspend_at(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def stop_here(*args: Any, **kwargs: Any) -> Any:
            if greenlet.getcurrent() is self._driver:
                return forward(*args, **kwargs)
            answer = self._driver.switch(Suspended(name, args, kwargs))
            if answer is _ENTER:
                answer = self._driver.switch(Suspended(name, args, kwargs, (forward(*args, **kwargs),)))
            return answer

        return stop_here

    def _stop_at_attention(self, name: str) -> Callable[[nn.Module, AttentionStates], AttentionStates]:
        def stop_here(module: nn.Module, states: AttentionStates) -> AttentionStates:
            if greenlet.getcurrent() is not self._driver and name in self._stops:
                self._driver.switch(Suspended(name, (states.keys, states.values, states.queries), {}))
            return states

        return stop_here

    def _stop_before(self, name: str, layer: nn.Module) -> Callable[..., Any]:
        call: Callable[..., Any] = layer._call_impl  # what `layer(...)` runs: its hooks, and between them its forward

        def stop_here(*args: Any, **kwargs: Any) -> Any:
            frame = greenlet.getcurrent()
            if frame is self._driver:
                return call(*args, **kwargs)
            if name in self._stops:
                self._driver.switch(Suspended(name, args, kwargs))
                return call(*args, **kwargs)
            x, before = self._due.get(frame, {}).pop(name, (None, 0))
            if x is not args[0] or _stamped(args[0])[1] != before:
                raise CalibrationError(
                    f"{name} is called with another input than the layers that it shared one with in the first batch; "
                    "set true_sequential=False"
                )
            return call(*args, **kwargs)

        return stop_here


def _stamped(x: Any) -> tuple[Any, int]:
    """A tensor and how often it was changed in place."""
    return x, version(x)


class _Shown(Exception):  # noqa: N818 - not an error: the hooks of a layer have seen its input
    pass


def _stub(layer: nn.Module) -> AbstractContextManager[None]:
    """Inside, the layer has its hooks and computes nothing."""

    def stop(*args: Any, **kwargs: Any) -> None:
        raise _Shown

    return replaced(layer, "forward", stop)
