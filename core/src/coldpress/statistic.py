"""Statistic: what is remembered of the inputs of a layer, without the inputs."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol

from attrs import frozen
from torch import Tensor

from coldpress.attention import AttentionInput
from coldpress.errors import BrokenPluginError, must_implement
from coldpress.registry import find
from coldpress.stage import Layer

RESCALE = "rescale"
"""The statistic of inputs divided by a scale follows from that of the inputs."""

ROTATE = "rotate"
"""The statistic of inputs times a matrix follows from that of the inputs."""


@frozen(kw_only=True)
class Statistic:
    """Base of statistics.  A statistic is settings; what was seen is a value that the caller keeps.

        value = None
        for x in batches:
            value = statistic.update(value, x)
        value = statistic.finish(value)

    Values form a monoid under `merge`, with None, nothing seen, as its neutral element.
    No method changes a value that it is given: a value may be continued in two ways.
    Two equal statistics are one, and are collected once; settings are fields.
    """

    supports: ClassVar[frozenset[str]] = frozenset()
    """What can be followed without seeing the inputs again: `RESCALE`, `ROTATE`."""

    needs_original_inputs: ClassVar[bool] = False
    """Whether it sees inputs beside those of the original model, by `update_with_original` in place of `update`; a
    modifier that requests it says so by `Needs.original_inputs`."""

    sees_heads: ClassVar[bool] = False
    """Keys, values and queries are [T, H, D] for it; else heads stand side by side, [T, H * D]."""

    def update(self, value: Any | None, x: Tensor) -> Any:
        """See some tokens.

        Args:
            value: of what was seen before; None at first.
            x: inputs of a layer, [T, I], T at least 1, padding removed; floating point, in the model's dtype.

        Returns:
            The value of all that was seen.
        """
        raise must_implement(self, "update(value, x)")

    def update_with_original(self, value: Any | None, x: Tensor, original: Tensor) -> Any:
        """See some tokens, and what the layer is called with for the same ones in the original model, [T, I] both."""
        raise must_implement(self, "update_with_original(value, x, original)")

    def merge(self, a: Any, b: Any) -> Any:
        """The value of two sets of tokens, seen apart; which is first does not matter."""
        raise must_implement(self, "merge(a, b)")

    def finish(self, value: Any) -> Any:
        """The value in the form that modifiers read, after the last batch; it can be updated further."""
        return value

    def rescale(self, value: Any, scale: Tensor) -> Any:
        """The value that inputs x / scale would have given, scale [I], float32, finite, none zero."""
        raise must_implement(self, "rescale(value, scale), or leave RESCALE out of supports")

    def rotate(self, value: Any, rotation: Tensor) -> Any:
        """The value that inputs x @ rotation would have given, rotation [I, I] float32; any matrix."""
        raise must_implement(self, "rotate(value, rotation), or leave ROTATE out of supports")


class Statistics(Protocol):
    """The statistics of the stage that is calibrated; modifiers reach them by the methods of `State`."""

    def request(self, layer: Layer | AttentionInput, which: str | Statistic) -> None:
        """Collect a statistic of the inputs of a layer; requesting twice is requesting once."""

    def value(self, layer: Layer | AttentionInput, which: str | Statistic) -> Any | None:
        """What was seen; None when no token reached the layer."""

    def input_groups(self, layers: Iterable[Layer]) -> list[list[Layer]]:
        """The layers in groups that read the same input."""

    def rescale(self, layers: Sequence[Layer], scale: Tensor) -> None:
        """The inputs of these layers are divided by `scale`, [I], from now on."""

    def rotate(self, layers: Sequence[Layer], rotation: Tensor) -> None:
        """The inputs of these layers are multiplied by `rotation`, [I, I], from the right, from now on."""

    def forget_attention(self, parameters: Iterable[str]) -> None:
        """The outputs of layers with these parameters are others: attention that they lie in sees others."""


def statistic_for(which: str | Statistic) -> Statistic:
    """The statistic of a name, with default settings; a statistic is handed back.

    Raises:
        PluginError: no installed plugin has the name, or what is offered is no statistic.
    """
    if isinstance(which, Statistic):
        return which
    kind = find("statistics", which)
    if not (isinstance(kind, type) and issubclass(kind, Statistic)):
        raise BrokenPluginError(f"the statistic {which!r} is {kind!r}, not a subclass of coldpress.Statistic")
    return kind()
