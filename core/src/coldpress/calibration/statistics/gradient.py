"""Statistics of output gradients: mean squares per output, and what each token counts."""

from collections.abc import Sequence

import torch
from attrs import field, frozen
from attrs.validators import ge, gt, le
from torch import Tensor

from coldpress.calibration.statistics.moments import Average, added
from coldpress.statistic import GradientStatistic, Tokens

_CHUNK = 1024  # tokens whose squares are held in float64


@frozen(kw_only=True)
class Gamma(GradientStatistic):
    """Mean squares of the gradient per output; its value is an `Average`, `.mean` [O].

    With sampled labels this is the diagonal of the Fisher information of the outputs: where an error E of the weight
    changes outputs by E x, KL of the model per token grows by about 1/2 sum_i gamma_i (E G E^T)_ii, G the mean of
    x x^T.
    """

    def update_with_gradient(self, value: Average | None, gradient: Tensor, tokens: Tokens) -> Average:
        """Add the squares, [T, O]."""
        total = torch.zeros(gradient.shape[1], dtype=torch.float64, device=gradient.device)  # [O]
        for part in torch.split(gradient, _CHUNK):
            total += part.double().square().sum(0)
        return added(value, Average(total, len(gradient)))

    def merge(self, a: Average, b: Average) -> Average:
        """Add both."""
        return added(a, b)

    def to_tensors(self, value: Average) -> dict[str, Tensor]:
        """Sum and count."""
        return {"total": value.total, "count": torch.tensor(value.count)}

    def from_tensors(self, tensors: dict[str, Tensor]) -> Average:
        """The same again."""
        return Average(tensors["total"], int(tensors["count"]))


@frozen(eq=False)
class TokenSquares:
    """What `token_weight` has seen.

    Attributes:
        squares: by batch and call, the sum over outputs of g^2 for each token, [T] float32, and the tokens' places.
        outputs: that were summed over.
    """

    squares: dict[Tokens, tuple[Tensor, Tensor | None]] = field()
    outputs: int = field()


@frozen(kw_only=True)
class TokenWeight(GradientStatistic):
    """What each token counts: the mean of g^2 over the outputs of all layers that read an input (GuidedQuant).

    Weighting the tokens of a Gram matrix by it makes a layer's error E cost what it adds to the model's loss, with one
    weight for all outputs, or for a group of them: sum_t w_t |E x_t|^2 (arXiv 2505.07004, eq. 7).
    The weights have a mean of 1 over all tokens, so that a dampening means what it means without them.

    Attributes:
        quantile: weights are cut at this quantile of them; a few tokens would be all that counts otherwise.
        power: that weights are raised to before; below 1 flattens them.
        groups: parts that the outputs of each layer are cut into, neighbours together.
        group: which of them say what a token counts, from 0.
    """

    quantile: float = field(default=0.95, validator=[gt(0.0), le(1.0)])
    power: float = field(default=1.0, validator=[gt(0.0), le(1.0)])
    groups: int = field(default=1, validator=ge(1))
    group: int = field(default=0)

    @group.validator
    def _check_group(self, attribute: object, value: int) -> None:
        if not 0 <= value < self.groups:
            raise ValueError(f"group must be one of 0 to {self.groups - 1}, of {self.groups} groups; got {value!r}")

    def rows(self, outputs: int) -> slice:
        """Of so many outputs of a layer, those in the group; none where there are fewer outputs than groups."""
        return slice(self.group * outputs // self.groups, (self.group + 1) * outputs // self.groups)

    def update_with_gradient(self, value: TokenSquares | None, gradient: Tensor, tokens: Tokens) -> TokenSquares:
        """Note the squares of each token."""
        before = {} if value is None else value.squares
        own = gradient[:, self.rows(gradient.shape[1])]  # [T, outputs of the group]
        return TokenSquares({**before, tokens: (own.float().square().sum(1), tokens.places)}, own.shape[1])

    def merge(self, a: TokenSquares, b: TokenSquares) -> TokenSquares:
        """All tokens of both."""
        return TokenSquares({**a.squares, **b.squares}, a.outputs)

    def to_tensors(self, value: TokenSquares) -> dict[str, Tensor]:
        """One tensor for each call."""
        found = {"outputs": torch.tensor(value.outputs)}
        for tokens, (squares, places) in value.squares.items():
            found[f"squares {tokens.batch} {tokens.call}"] = squares
            if places is not None:
                found[f"places {tokens.batch} {tokens.call}"] = places
        return found

    def from_tensors(self, tensors: dict[str, Tensor]) -> TokenSquares:
        """The same again."""
        found = {}
        for name, tensor in tensors.items():
            kind, *where = name.split()
            if kind == "squares":
                batch, call = map(int, where)
                found[Tokens(batch, call)] = (tensor, tensors.get(f"places {batch} {call}"))
        return TokenSquares(found, int(tensors["outputs"]))

    def weights(self, values: Sequence[TokenSquares]) -> dict[Tokens, tuple[Tensor, Tensor | None]]:
        """Of an input that the layers with these values read; a token that one of them does not see adds nothing."""
        outputs = max(1, sum(value.outputs for value in values))
        keys = sorted({key for value in values for key in value.squares}, key=lambda one: (one.batch, one.call))
        joined = {key: _joined([value.squares[key] for value in values if key in value.squares]) for key in keys}
        sums = {key: squares / outputs for key, (squares, _) in joined.items()}
        every = torch.cat(list(sums.values())).double()  # [all tokens]
        if not bool(every.any()):
            return {tokens: (torch.ones_like(one), joined[tokens][1]) for tokens, one in sums.items()}
        every = (every / every.mean()) ** self.power
        edge = every.kthvalue(max(1, round(self.quantile * len(every)))).values
        every = every.clamp(max=edge) if edge > 0 else every
        every = (every / every.mean()).float()
        parts = torch.split(every, [len(one) for one in sums.values()])
        return {tokens: (part, joined[tokens][1]) for tokens, part in zip(sums, parts, strict=True)}


def _joined(parts: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """The sums of squares of several layers, and the places of all tokens that one of them sees."""
    first, places = parts[0]
    if all(_same(places, where) and len(one) == len(first) for one, where in parts):
        return torch.stack([one for one, _ in parts]).sum(0), places
    known = [torch.arange(len(one), device=one.device) if where is None else where for one, where in parts]
    total = first.new_zeros(1 + int(torch.cat(known).max()))
    seen = torch.zeros_like(total, dtype=torch.bool)
    for (one, _), where in zip(parts, known, strict=True):
        total.index_add_(0, where, one)
        seen[where] = True
    where = seen.nonzero()[:, 0]
    return total[where], where


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)
