"""Exact rotation of parameters: norms are folded into what reads them, and vectors of weights are multiplied by R.

    reader: W <- W diag(g) R     writer: W <- R^T W, b <- b R     norm: g <- 1, bias <- (bias / g) R

Each parameter is computed in float64 and rounded to its dtype once.
"""

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn

from coldpress.dataflow.pair import Pair, spread
from coldpress.numerics import Rotation, piece

_CHUNK = 1 << 17  # elements that are in float64 at a time on a CPU, where a parameter can be divided

Step = tuple[int, Callable[[Tensor], Tensor]]
"""A dimension, and what is done to the vectors along it, [..., n] float64."""


@frozen(eq=False)
class RotationSite:
    """Where a rotation enters a parameter: its vectors along a dimension are multiplied by R.

    Attributes:
        parameter: its name.
        dim: the dimension.
        rows: the elements along the dimension that are rotated, int64 [C], in their order; None for all.
    """

    parameter: str
    dim: int
    rows: Tensor | None = field(default=None, repr=False)

    def within(self, prefix: str) -> "RotationSite":
        """The same site, named from the module that holds the block as `prefix`."""
        return evolve(self, parameter=f"{prefix}.{self.parameter}") if prefix else self


@frozen(eq=False)
class Folding:
    """A norm whose weight moves into the layers that read it.

    Attributes:
        norm: with its readers.
        gain: what it multiplies its channels by, [C] float64, before it is folded.
    """

    norm: Pair
    gain: Tensor


@torch.no_grad()
def rotate(
    module: nn.Module,
    foldings: Sequence[Folding],
    rotations: Iterable[tuple[RotationSite, Rotation]],
    *,
    only: Collection[str] | None = None,
) -> list[str]:
    """Fold norms, then rotate, in place.

    Args:
        module: that has the parameters.
        foldings: norms to fold.
        rotations: where which rotation enters; those of one parameter act in their order.
        only: names of the parameters that are changed; None for all.

    Returns:
        The names of the parameters that were changed.
    """
    steps: dict[str, list[Step]] = {}
    for folding in foldings:
        for parameter, step in _folding_steps(folding):
            steps.setdefault(parameter, []).append(step)
    for site, rotation in rotations:
        steps.setdefault(site.parameter, []).append((site.dim, _rotating(site, rotation)))
    chosen = [name for name in steps if only is None or name in only]
    for name in chosen:
        _rewrite(module.get_parameter(name), steps[name])
    return chosen


def _folding_steps(folding: Folding) -> Iterable[tuple[str, Step]]:
    pair, gain = folding.norm, folding.gain
    weight, *biases = pair.sites
    for member in pair.members:
        yield member.site.parameter, (member.site.dim, _times(spread(gain, member.channels)))
    whole = gain.new_ones(pair.width)
    whole[pair.rows] = torch.where(gain == 0, 1.0, gain)
    for site in biases:
        yield site.parameter, (site.dim, _times(1 / whole))
    yield weight.parameter, (weight.dim, lambda w: _filled(w, pair.rows, 1.0 - weight.offset))


def _times(factor: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x * factor.to(x)


def _filled(w: Tensor, rows: Tensor, value: float) -> Tensor:
    return w.index_fill(-1, rows.to(w.device), value)


def _rotating(site: RotationSite, rotation: Rotation) -> Callable[[Tensor], Tensor]:
    if site.rows is None:
        return rotation.apply
    rows = site.rows

    def apply(x: Tensor) -> Tensor:
        at = rows.to(x.device)
        return x.index_copy(-1, at, rotation.apply(x.index_select(-1, at)))

    return apply


def _rewrite(parameter: nn.Parameter, steps: Sequence[Step]) -> None:
    """Do all steps in float64; in parts where all of them act on the same dimension."""
    wide = torch.float64 if parameter.device.type != "mps" else torch.float32
    dims = {dim % parameter.ndim for dim, _ in steps}
    if len(dims) > 1:
        value = parameter.to(wide)
        for dim, step in steps:
            value = step(value.movedim(dim, -1)).movedim(-1, dim)
        parameter.copy_(value)
        return
    (dim,) = dims
    vectors = parameter.movedim(dim, -1)  # a view
    lines = vectors.reshape(-1, vectors.shape[-1]) if vectors.is_contiguous() else vectors
    size = max(1, piece(parameter, _CHUNK) // lines[0].numel()) if lines.ndim > 1 else len(lines)
    for start in range(0, len(lines), size):
        part = lines[start : start + size]
        value = part.to(wide)
        for _, step in steps:
            value = step(value)
        part.copy_(value)
