"""A few of a layer's input tokens, the same ones however they are batched."""

from typing import ClassVar

import torch
from attrs import field, frozen
from attrs.validators import ge
from torch import Tensor

from coldpress.plugin import RESCALE, ROTATE, Statistic

_PRIME = 2_147_483_629


@frozen(eq=False)
class Tokens:
    """What `Sample` says.

    Attributes:
        tokens: [t, I].
        keys: what they were chosen by, [t] int64, ascending.
    """

    tokens: Tensor
    keys: Tensor


@frozen(kw_only=True)
class Sample(Statistic):
    """Tokens with the smallest keys; a key is made of the bits of a token, so it does not know of order or batches.

    Attributes:
        count: how many are kept.
    """

    supports: ClassVar[frozenset[str]] = frozenset({RESCALE, ROTATE})

    count: int = field(default=256, validator=ge(1))

    def update(self, value: Tokens | None, x: Tensor) -> Tokens:
        """See some tokens, [T, I]."""
        keys = _keys(x)
        chosen = keys.topk(min(self.count, len(keys)), largest=False, sorted=True).indices
        seen = Tokens(x[chosen].clone(), keys[chosen])
        return seen if value is None else self.merge(value, seen)

    def merges_batches(self) -> bool:
        """It does."""
        return True

    def merge(self, a: Tokens, b: Tokens) -> Tokens:
        """Those with the smallest keys of both."""
        tokens, keys = torch.cat([a.tokens, b.tokens.to(a.tokens.dtype)]), torch.cat([a.keys, b.keys])
        order = keys.argsort(stable=True)[: self.count]
        return Tokens(tokens[order], keys[order])

    def rescale(self, value: Tokens, scale: Tensor) -> Tokens:
        """The same tokens, divided."""
        return Tokens(value.tokens.float() / scale, value.keys)

    def rotate(self, value: Tokens, rotation: Tensor) -> Tokens:
        """The same tokens, multiplied."""
        return Tokens(value.tokens.float() @ rotation, value.keys)


def _keys(x: Tensor) -> Tensor:
    """A number for each token that is as good as random, [T, I] -> [T] int64."""
    bits = x.float()[:, :8].contiguous().view(torch.int32).long()  # [T, 8]
    key = bits.new_zeros(len(x))
    for column in bits.unbind(1):
        key = (key * 48271 + column) % _PRIME
    return key
