"""gram: sums of products of channels, x^T x, which GPTQ calls the Hessian."""

from typing import ClassVar

import torch
from attrs import evolve, field, frozen
from attrs.validators import ge
from torch import Tensor

from coldpress.numerics import folded_gram, unfolded
from coldpress.statistic import RESCALE, ROTATE, ChunkedStatistic, GradientStatistic


@frozen(eq=False)
class GramValue:
    """What `gram` says.

    Attributes:
        total: the sum of x^T x over tokens, [I, I] float32, symmetric; before `finish` folded, see `folded_gram`.
        count: of tokens.
        pending: tokens that are not in the total yet, [t, I] each; none after `finish`.
        folded: whether the total is.
        multiplied: tokens that are in the total.
    """

    total: Tensor | None = field()
    count: int = field()
    pending: tuple[Tensor, ...] = ()
    folded: bool = False
    multiplied: int = 0


@frozen(kw_only=True)
class Gram(ChunkedStatistic):
    """The Gram matrix of a layer's inputs; its value is a `GramValue`.

    Tokens are gathered and multiplied `chunk` at a time, cut where their number says and not where a batch ends: the
    same tokens in the same order give the same bits, however they are batched, and adding up costs little.

    Attributes:
        chunk: tokens that are multiplied at once.
        weights: what each token counts, such as `TokenWeight()`; None counts all alike.
    """

    supports: ClassVar[frozenset[str]] = frozenset({RESCALE, ROTATE})

    chunk: int = field(default=4096, validator=ge(1))
    weights: GradientStatistic | None = None

    def weighted_by(self) -> GradientStatistic | None:
        """What `weights` says."""
        return self.weights

    def update_weighted(self, value: GramValue | None, x: Tensor, weight: Tensor) -> GramValue:
        """Add sum_t w_t x_t x_t^T; `count` counts tokens, whose weights have a mean of 1."""
        return self.update(value, (x.float() * weight.to(x.device).sqrt()[:, None]).to(x.dtype))

    def update(self, value: GramValue | None, x: Tensor) -> GramValue:
        """Add the tokens, [T, I]."""
        value = GramValue(None, 0) if value is None else value
        pending, count = (*value.pending, x), value.count + len(x)
        if sum(map(len, pending)) < self.chunk:
            return evolve(value, count=count, pending=pending)
        tokens = torch.cat(pending) if len(pending) > 1 else x  # [t, I]
        whole = len(tokens) - len(tokens) % self.chunk
        for part in torch.split(tokens[:whole], self.chunk):
            value = _with(value, part)
        rest = (tokens[whole:].clone(),) if whole < len(tokens) else ()  # a view would keep all of them in memory
        return evolve(value, count=count, pending=rest)

    def chunk_size(self) -> int:
        """`chunk`."""
        return self.chunk

    def addend(self, x: Tensor, seen: int) -> Tensor:
        """The folded matrix of a chunk, [I, I]."""
        return folded_gram(x, seen=seen)

    def add(self, value: GramValue | None, addend: Tensor, tokens: int) -> GramValue:
        """The folded matrix of one more chunk."""
        value = GramValue(None, 0) if value is None else value
        return evolve(_added(value, addend, tokens), count=value.count + tokens)

    def merge(self, a: GramValue, b: GramValue) -> GramValue:
        """Add both."""
        a, b = self.finish(a), self.finish(b)
        return GramValue(_whole(a) + _whole(b), a.count + b.count, multiplied=a.count + b.count)

    def finish(self, value: GramValue) -> GramValue:
        """Multiply what is pending, and unfold."""
        if value.pending:
            value = evolve(_with(value, torch.cat(value.pending)), pending=())
        return evolve(value, total=unfolded(_whole(value).clone()), folded=False) if value.folded else value

    def rescale(self, value: GramValue, scale: Tensor) -> GramValue:
        """D^-1 G D^-1, where D has the scale on its diagonal."""
        value = self.finish(value)
        return GramValue(_whole(value) / scale[:, None] / scale, value.count, multiplied=value.count)

    def rotate(self, value: GramValue, rotation: Tensor) -> GramValue:
        """R^T G R, in float64."""
        value = self.finish(value)
        wide = rotation.double()
        total = wide.t() @ (_whole(value).double() @ wide)  # [I, I]
        return GramValue(total.add_(total.t().clone()).mul_(0.5).float(), value.count, multiplied=value.count)


def _with(value: GramValue, tokens: Tensor) -> GramValue:
    """The value, folded, with some of the tokens that it counts, [t, I]."""
    return _added(value, folded_gram(tokens, seen=value.multiplied), len(tokens))


def _added(value: GramValue, fresh: Tensor, tokens: int) -> GramValue:
    """The value with a folded matrix of so many tokens, [I, I], which is overwritten."""
    if value.total is not None:
        fresh.add_(value.total if value.folded else value.total.triu())
    return evolve(value, total=fresh, folded=True, multiplied=value.multiplied + tokens)


def _whole(value: GramValue) -> Tensor:
    assert value.total is not None
    return value.total
