"""A Gram matrix of some of a layer's input tokens, on which candidates are compared."""

from typing import ClassVar

import torch
from attrs import evolve, field, frozen
from attrs.validators import ge
from torch import Tensor

from coldpress.numerics import gram
from coldpress.plugin import RESCALE, ROTATE, GradientStatistic, Statistic

_CHUNK = 4096  # tokens that are multiplied at once


@frozen(eq=False)
class GramValue:
    """What `SampledGram` says.

    Attributes:
        total: the sum of x^T x over the tokens that were taken, [I, I] float32.
        count: of those tokens.
        seen: how many there were.
        pending: tokens that are not in the total yet, [t, I] each; none after `finish`.
    """

    total: Tensor | None = field()
    count: int = 0
    seen: int = 0
    pending: tuple[Tensor, ...] = ()


@frozen(kw_only=True)
class SampledGram(Statistic):
    """The Gram matrix of the first tokens, and of every n-th that follows, however they are batched.

    Attributes:
        first: how many are all taken.
        every: n; a prime, so that texts of a usual length do not always give the same places.
        weights: what each token counts; None counts all alike.
    """

    supports: ClassVar[frozenset[str]] = frozenset({RESCALE, ROTATE})

    first: int = field(default=1024, validator=ge(0))
    every: int = field(default=5, validator=ge(1))
    weights: GradientStatistic | None = None

    def weighted_by(self) -> GradientStatistic | None:
        """What `weights` says."""
        return self.weights

    def update_weighted(self, value: GramValue | None, x: Tensor, weight: Tensor) -> GramValue:
        """Take some of the tokens, each as often as it counts."""
        return self.update(value, (x.float() * weight.to(x.device).sqrt()[:, None]).to(x.dtype))

    def update(self, value: GramValue | None, x: Tensor) -> GramValue:
        """Take some of the tokens, [T, I]."""
        value = GramValue(None) if value is None else value
        rest = x[max(0, self.first - value.seen) :]
        begin = value.seen + len(x) - len(rest)  # the number of the first token of the rest
        taken = rest[-begin % self.every :: self.every]
        if len(rest) < len(x):
            taken = torch.cat([x[: len(x) - len(rest)], taken])
        value = evolve(value, seen=value.seen + len(x))
        if not len(taken):
            return value
        value = evolve(value, count=value.count + len(taken), pending=(*value.pending, taken.clone()))
        return _multiplied(value) if sum(map(len, value.pending)) >= _CHUNK else value

    def merge(self, a: GramValue, b: GramValue) -> GramValue:
        """Add both."""
        a, b = self.finish(a), self.finish(b)
        totals = [value.total for value in (a, b) if value.total is not None]
        return GramValue(sum(totals[1:], totals[0]) if totals else None, a.count + b.count, a.seen + b.seen)

    def finish(self, value: GramValue) -> GramValue:
        """Multiply what is pending."""
        return _multiplied(value) if value.pending else value

    def rescale(self, value: GramValue, scale: Tensor) -> GramValue:
        """D^-1 G D^-1, where D has the scale on its diagonal."""
        return evolve(value, total=None if value.total is None else value.total / scale[:, None] / scale)

    def rotate(self, value: GramValue, rotation: Tensor) -> GramValue:
        """R^T G R."""
        return evolve(value, total=None if value.total is None else rotation.t() @ value.total @ rotation)


def _multiplied(value: GramValue) -> GramValue:
    fresh = gram(torch.cat(value.pending))
    return evolve(value, total=fresh if value.total is None else fresh.add_(value.total), pending=())
