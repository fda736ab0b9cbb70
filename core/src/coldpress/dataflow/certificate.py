"""The certificate: fold random scales and see that nothing the block returns has moved.

Two kinds of scale are tried: factors around one, and powers of two from 1/1024 to 1024.  The second cannot be
told from the first where the path is homogeneous, and drives a clamp or a soft cap, which tiny inputs never
reach, out of its linear range.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coldpress.dataflow.pair import Pair

TOLERANCE = 1e-8  # relative, float64; honest pairs reach 1e-12


def deviation(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest change of any tensor relative to its own largest entry; inf where shapes differ or NaN appears."""
    if [b.shape for b in before] != [a.shape for a in after]:
        return float("inf")
    worst = 0.0
    for b, a in zip(before, after, strict=True):
        if b.numel():
            change = ((a - b).abs().amax() / b.abs().amax().clamp_min(1e-300)).item()
            worst = max(worst, change if change == change else float("inf"))
    return worst


def tensors(value: Any) -> list[Tensor]:
    """Every floating tensor inside nested tuples, lists, dicts and objects with fields, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [t for v in value for t in tensors(v)]
    return tensors(vars(value)) if hasattr(value, "__dict__") and not isinstance(value, nn.Module) else []


def random_scales(pair: Pair, generator: torch.Generator) -> Iterator[Tensor]:
    """The scales a certificate folds: [C] or [E, C], float64."""
    shape = (pair.num_experts, len(pair.rows)) if pair.num_experts else (len(pair.rows),)
    yield torch.rand(shape, generator=generator, dtype=torch.float64) * 1.5 + 0.5
    yield torch.exp2(torch.randint(-10, 11, shape, generator=generator).double())


def snapshot(module: nn.Module, pair: Pair) -> dict[str, Tensor]:
    """Copies of the parameters that folding the pair would change."""
    names = {s.parameter for s in pair.sites} | {m.site.parameter for m in pair.members}
    return {n: module.get_parameter(n).detach().clone() for n in sorted(names)}


@torch.no_grad()
def restore(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Put the parameters of a snapshot back."""
    for name, value in saved.items():
        module.get_parameter(name).copy_(value)
