"""Statistic: what is remembered of the inputs of a layer, without the inputs."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, Protocol

from attrs import field, frozen
from attrs.validators import in_
from torch import Tensor

from coldpress.errors import BrokenPluginError, must_implement
from coldpress.registry import find
from coldpress.routed import Observed
from coldpress.stage import Layer

RESCALE = "rescale"
"""The statistic of inputs divided by a scale follows from that of the inputs."""

ROTATE = "rotate"
"""The statistic of inputs times a matrix follows from that of the inputs."""

Labels = Literal["sampled", "data"]
"""Of the model's loss: drawn from what the model predicts, for the Fisher information, or the tokens of the data."""

LABELS: tuple[Labels, ...] = ("sampled", "data")


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

    def weighted_by(self) -> "GradientStatistic | None":
        """What gives each token a weight, for `update_weighted` in place of `update`; None where all count alike.

        A modifier that requests it names what is returned in `Needs.loss_gradients`.
        """
        return None

    def update_weighted(self, value: Any | None, x: Tensor, weight: Tensor) -> Any:
        """See some tokens, and what each counts, [T] float32, not negative; the mean over all tokens is 1."""
        raise must_implement(self, "update_weighted(value, x, weight)")

    def merge(self, a: Any, b: Any) -> Any:
        """The value of two sets of tokens, seen apart; which is first does not matter."""
        raise must_implement(self, "merge(a, b)")

    def merges_batches(self) -> bool:
        """Whether `update(value, x)` is `merge(value, update(None, x))` in every bit; else ranks send tokens around."""
        return False

    def finish(self, value: Any) -> Any:
        """The value in the form that modifiers read, after the last batch; it can be updated further."""
        return value

    def rescale(self, value: Any, scale: Tensor) -> Any:
        """The value that inputs x / scale would have given, scale [I], float32, finite, none zero."""
        raise must_implement(self, "rescale(value, scale), or leave RESCALE out of supports")

    def rotate(self, value: Any, rotation: Tensor) -> Any:
        """The value that inputs x @ rotation would have given, rotation [I, I] float32; any matrix."""
        raise must_implement(self, "rotate(value, rotation), or leave ROTATE out of supports")


@frozen(kw_only=True)
class ChunkedStatistic(Statistic):
    """Base of statistics that are sums over chunks of tokens, cut where their number says; ranks add up one each."""

    def chunk_size(self) -> int:
        """Tokens of a chunk; the last one has fewer."""
        raise must_implement(self, "chunk_size()")

    def addend(self, x: Tensor, seen: int) -> Tensor:
        """What a chunk of tokens, [t, I], adds, [I, I] float32, after chunks of `seen` tokens."""
        raise must_implement(self, "addend(x, seen)")

    def add(self, value: Any | None, addend: Tensor, tokens: int) -> Any:
        """The value with what the next chunk adds, which has so many tokens; `update` gives the same bits."""
        raise must_implement(self, "add(value, addend, tokens)")


@frozen
class Tokens:
    """Which tokens a layer is called with.

    Attributes:
        batch: index of the batch, from 0.
        call: of the layer in this batch, from 0.
        places: of these tokens among all of the sequences, [T] int64, of an expert's and where there is padding; None
            for all of them, in order.
    """

    batch: int
    call: int = 0
    places: Tensor | None = field(default=None, eq=False)


@frozen(kw_only=True)
class GradientStatistic(Statistic):
    """Base of statistics of the gradient of the model's loss by a layer's outputs, g = dL / dy.

    L is the sum of the cross-entropy over all tokens that count, of the model as it was before the run.
    They are collected in one reverse sweep before the first stage, for modifiers that name them in
    `Needs.loss_gradients`; `update_with_gradient` stands in place of `update`.

    Attributes:
        labels: "sampled" from the model's own predictions, which makes mean squares the Fisher information, or "data",
            the tokens that come next.
    """

    labels: Labels = field(default="sampled", validator=in_(LABELS))

    def update_with_gradient(self, value: Any | None, gradient: Tensor, tokens: Tokens) -> Any:
        """See the gradient of one call of a layer.

        Args:
            value: of what was seen before; None at first.
            gradient: [T, O], T at least 1, padding removed, in the model's dtype.
            tokens: which these are.
        """
        raise must_implement(self, "update_with_gradient(value, gradient, tokens)")

    def to_tensors(self, value: Any) -> dict[str, Tensor]:
        """The value as named tensors, which are kept for an interrupted run."""
        raise must_implement(self, "to_tensors(value)")

    def from_tensors(self, tensors: dict[str, Tensor]) -> Any:
        """The value that `to_tensors` gave these for, bit for bit."""
        raise must_implement(self, "from_tensors(tensors)")

    def weights(self, values: Sequence[Any]) -> "dict[Tokens, tuple[Tensor, Tensor | None]]":
        """What each token of an input counts, if this statistic says that.

        Args:
            values: of the layers that read the input.

        Returns:
            By batch and call, weights [T] float32, whose mean over all of them is 1, and the tokens' places.
        """
        raise must_implement(self, "weights(values)")


class Statistics(Protocol):
    """The statistics of the stage that is calibrated; modifiers reach them by the methods of `State`."""

    def request(self, layer: Observed, which: str | Statistic) -> None:
        """Collect a statistic of the inputs of a layer; requesting twice is requesting once."""

    def value(self, layer: Observed, which: str | Statistic) -> Any | None:
        """What was seen; None when no token reached the layer."""

    def take(self, names: Sequence[str], which: str | Statistic) -> None:
        """A statistic of these layers is not read again, but by other modifiers that asked for it."""

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
