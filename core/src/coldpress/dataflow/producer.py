"""Candidates: everything in a block whose output channels have a parameter each that could carry a scale."""

from collections.abc import Iterator

import torch
from torch import nn

from coldpress.dataflow.pair import Pair, Site
from coldpress.dataflow.product_trace import Use
from coldpress.dataflow.workbench import Workbench
from coldpress.stage import input_dim, is_linear


def candidates(bench: Workbench) -> Iterator[tuple[Pair, ...]]:
    """Pairs without consumers; a tuple holds alternatives of which at most one is right (the norm conventions)."""
    used = {u.parameter: u for u in bench.before.uses}
    for name, module in bench.block.named_modules():
        if is_linear(module):
            if f"{name}.weight" in used:
                yield (_linear(name, module),)
        else:
            yield from _norms(name, module)
            yield from _experts(name, module, used)


def _linear(name: str, module: nn.Module) -> Pair:
    weight, dim = module.get_parameter("weight"), 1 - input_dim(module)
    sites = [Site(f"{name}.weight", dim)]
    if module._parameters.get("bias") is not None:
        sites.append(Site(f"{name}.bias", 0))
    return _bare(name, "linear", tuple(sites), weight.shape[dim])


def _norms(name: str, module: nn.Module) -> Iterator[tuple[Pair, ...]]:
    """A weight, or a weight and a bias; a module with more vectors has each tried alone."""
    vectors = {n: p for n, p in module._parameters.items() if p is not None and p.ndim == 1 and len(p) > 1}
    groups = [tuple(vectors)] if len({len(p) for p in vectors.values()}) == 1 and len(vectors) <= 2 else []
    for group in groups or [(n,) for n in vectors]:
        width = len(vectors[group[0]])
        prefix = f"{name}." if name else ""
        rest = tuple(Site(prefix + n, 0) for n in group[1:])
        yield tuple(
            _bare(name, "norm", (Site(prefix + group[0], 0, offset), *rest), width, offset=offset) for offset in (0, 1)
        )


def _experts(name: str, module: nn.Module, used: dict[str, Use]) -> Iterator[tuple[Pair, ...]]:
    prefix = f"{name}." if name else ""
    for leaf, p in module._parameters.items():
        use = used.get(prefix + leaf)
        if p is None or p.ndim != 3 or use is None or use.dim == 0:
            continue
        dim = 3 - use.dim
        sites = [Site(prefix + leaf, dim)]
        for other, q in module._parameters.items():
            if q is not None and other.startswith(leaf) and tuple(q.shape) == (p.shape[0], p.shape[dim]):
                sites.append(Site(prefix + other, 1))
        yield (_bare(prefix + leaf, "experts", tuple(sites), p.shape[dim], num_experts=p.shape[0]),)


def _bare(
    name: str, kind: str, sites: tuple[Site, ...], width: int, *, offset: int = 0, num_experts: int | None = None
) -> Pair:
    return Pair(
        producer=name,
        kind=kind,  # type: ignore[arg-type]
        offset=offset,
        rows=torch.arange(width),
        width=width,
        members=(),
        num_experts=num_experts,
        sites=sites,
    )
