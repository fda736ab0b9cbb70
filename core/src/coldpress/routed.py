"""What experts are sent and say: a point that statistics are collected at, beside the inputs of layers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import frozen

from coldpress.attention import AttentionInput
from coldpress.stage import Layer

if TYPE_CHECKING:
    from torch import Tensor, nn

RoutedTap: TypeAlias = "Callable[[Tensor], None]"
"""Sees, after a call of a module of experts, the table that `RoutedTokens` describes, of every token of the call."""


@frozen(eq=False)
class RoutedTokens:
    """The tokens that a router sends to experts, [T, E, 2] with E experts.

    The first number is the weight that the expert's output gets; the second is the norm of that output before it is
    weighted, and -1 where the token was not sent to the expert.  A statistic of these `sees_heads`.

    Attributes:
        owner: name of the module of experts, from the root of the model.
        module: the module itself.
    """

    owner: str
    module: "nn.Module"

    @property
    def name(self) -> str:
        """The name by which statistics know it, which is that of no module."""
        return f"{self.owner}.routed"


Observed: TypeAlias = Layer | AttentionInput | RoutedTokens
"""What statistics can be collected of."""


@contextmanager
def routed_tapped(module: Any, tap: RoutedTap) -> Iterator[None]:
    """Inside, a module of experts has one more tap."""
    module.taps.append(tap)
    try:
        yield
    finally:
        module.taps.remove(tap)
