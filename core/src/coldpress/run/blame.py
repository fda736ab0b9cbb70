"""Blame: an exception of a plugin's code is told as what it is, with the plugin, the hook, the stage and the layer."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from attrs import frozen

from coldpress import registry
from coldpress.calibration.observer import Observer
from coldpress.errors import BrokenPluginError, ColdpressError, is_of_the_machine
from coldpress.format import Format
from coldpress.modifier import Modifier
from coldpress.pipeline import Pipeline
from coldpress.planned import Running
from coldpress.stage import Layer, Stage
from coldpress.statistic import Statistic

T = TypeVar("T")

_PLUGINS = (Modifier, Observer, Pipeline, Format, Statistic)


@frozen
class _Method:
    """Where a plugin was when an exception was raised.

    Attributes:
        plugin: the plugin.
        name: of its method.
    """

    plugin: object
    name: str

    def __str__(self) -> str:
        kind = type(self.plugin)
        owner = registry.owner_of(kind.__module__)
        return f"{kind.__name__}.{self.name}" + ("" if owner is None else f" ({owner})")


@contextmanager
def blaming(running: Running | None = None) -> Iterator[None]:
    """Inside, an exception that is none of ours becomes the error of the plugin that it comes from.

    Args:
        running: the hook that runs inside, which is to blame where no other plugin is; None where no hook runs, and an
            exception from no plugin stays what it is.

    Raises:
        BrokenPluginError: names the plugin, its method, the hook, and, as far as they can be seen, stage and layer.
    """
    try:
        yield
    except ColdpressError:
        raise
    except Exception as error:
        if is_of_the_machine(error):
            raise
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        method = _method(frames, running)
        if method is None:
            raise
        raise BrokenPluginError(f"{method}{_place(frames, method, running)}: {_message(error)}") from error


def _method(frames: list[FrameType], running: Running | None) -> _Method | None:
    """The innermost method of a plugin among the frames; the hook where there is none."""
    for frame in reversed(frames):
        one = frame.f_locals.get("self")
        if isinstance(one, _PLUGINS) and not type(one).__module__.startswith("coldpress."):
            return _Method(one, frame.f_code.co_name)
    return None if running is None else _Method(running.modifier, running.hook)


def _place(frames: list[FrameType], method: _Method, running: Running | None) -> str:
    stage = _innermost(frames, Stage, "stage") if running is None else running.stage
    layer = _innermost(frames, Layer, "layer")
    place = "" if stage is None else f" at {stage.name}"
    place += "" if layer is None else f", layer {layer.name}"
    if running is None or (method.plugin is running.modifier and method.name == running.hook):
        return place
    return f"{place}, called by {type(running.modifier).__name__}.{running.hook}"


def _innermost(frames: list[FrameType], kind: type[T], usual: str) -> T | None:
    """The value of a class that the innermost frame holds which has one, best under its usual name."""
    for frame in reversed(frames):
        held = frame.f_locals
        found = [value for value in (held.get(usual), *held.values()) if isinstance(value, kind)]
        if found:
            return found[0]
    return None


def _message(error: Exception) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
