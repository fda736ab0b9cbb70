"""gram: sums of products of channels, x^T x, which GPTQ calls the Hessian."""

from typing import ClassVar

import torch
from attrs import field, frozen
from attrs.validators import ge
from torch import Tensor

from coldpress.numerics import gram
from coldpress.statistic import RESCALE, ROTATE, Statistic


@frozen(eq=False)
class GramValue:
    """What `gram` says.

    Attributes:
        total: the sum of x^T x over tokens, [I, I] float32, symmetric.
        count: of tokens.
        pending: tokens that are not in the total yet, [t, I] each; none after the last batch.
    """

    total: Tensor | None = field()
    count: int = field()
    pending: tuple[Tensor, ...] = ()


@frozen(kw_only=True)
class Gram(Statistic):
    """The Gram matrix of a layer's inputs; its value is a `GramValue`.

    Tokens are gathered and multiplied `chunk` at a time, cut where their number says and not where a batch ends: the
    same tokens in the same order give the same bits, however they are batched, and adding up costs little.

    Attributes:
        chunk: tokens that are multiplied at once.
    """

    carries: ClassVar[frozenset[str]] = frozenset({RESCALE, ROTATE})

    chunk: int = field(default=4096, validator=ge(1))

    def update(self, value: GramValue | None, x: Tensor) -> GramValue:
        """Add the tokens, [T, I]."""
        value = GramValue(None, 0) if value is None else value
        pending = (*value.pending, x)
        if sum(map(len, pending)) >= self.chunk:
            return self._multiplied(value.total, value.count + len(x), pending)
        return GramValue(value.total, value.count + len(x), pending)

    def merge(self, a: GramValue, b: GramValue) -> GramValue:
        """Add both."""
        a, b = self.finish(a), self.finish(b)
        return GramValue(_whole(a) + _whole(b), a.count + b.count)

    def finish(self, value: GramValue) -> GramValue:
        """Multiply what is pending."""
        if not value.pending:
            return value
        return GramValue(_sum(value.total, gram(torch.cat(value.pending))), value.count)

    def rescale(self, value: GramValue, scale: Tensor) -> GramValue:
        """D^-1 G D^-1, where D has the scale on its diagonal."""
        value = self.finish(value)
        return GramValue(_whole(value) / scale[:, None] / scale, value.count)

    def rotate(self, value: GramValue, rotation: Tensor) -> GramValue:
        """R^T G R, in float64."""
        value = self.finish(value)
        wide = rotation.double()
        total = wide.t() @ (_whole(value).double() @ wide)  # [I, I]
        return GramValue(total.add_(total.t().clone()).mul_(0.5).float(), value.count)

    def _multiplied(self, total: Tensor | None, count: int, pending: tuple[Tensor, ...]) -> GramValue:
        """The value after all whole chunks of what was pending."""
        tokens = torch.cat(pending) if len(pending) > 1 else pending[0]  # [t, I]
        whole = len(tokens) - len(tokens) % self.chunk
        for part in torch.split(tokens[:whole], self.chunk):
            total = _sum(total, gram(part))
        rest = (tokens[whole:].clone(),) if whole < len(tokens) else ()  # a view would keep all of them in memory
        return GramValue(total, count, rest)


def _sum(a: Tensor | None, fresh: Tensor) -> Tensor:
    """Both, in the memory of the second, which nobody else holds yet."""
    return fresh if a is None else fresh.add_(a)


def _whole(value: GramValue) -> Tensor:
    assert value.total is not None
    return value.total
