"""Which rows of a fused producer feed a layer: the v rows of a qkv layer, the up rows of a gate_up layer.

Euler's theorem: the input x of a layer is homogeneous of degree k in the producer's output channel r
exactly if  sum_t y[t, r] dx/dy[t, r] = k x.  One backward pass from one input channel c of the layer,
summed over tokens with random weights, gives the left side for every row of every producer at once;
the rows where it equals k x are those that channel c is a multiple of.  The other rows (q and k behind a softmax,
the gate behind a SiLU) give some other number.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from attrs import evolve
from torch import Tensor

from coldpress.dataflow.detect import DEGREES
from coldpress.dataflow.pair import Pair
from coldpress.dataflow.product_trace import Use
from coldpress.dataflow.workbench import Workbench

DENSE = 160  # inputs up to this width are asked channel by channel
RTOL = 1e-7


@torch.enable_grad()
def feeding_rows(bench: Workbench, producers: list[Pair], consumers: list[str]) -> list[Pair]:
    """Producers cut to the rows that one of the consumers is a multiple of, without members yet.

    Args:
        bench: with the block.
        producers: linear layers and stacks that could not absorb a scale as a whole.
        consumers: parameters whose input is not scaled yet.
    """
    weights = {p.sites[0].parameter: p for p in producers}
    found: list[Pair] = []
    reading = bench.run_with_gradients()
    for parameter in consumers:
        at = next((i for i, u in enumerate(reading.uses) if u.parameter == parameter), None)
        if at is None:
            continue
        earlier = [u for u in reading.uses[:at] if u.parameter in weights and u.output.requires_grad]
        target = reading.uses[at].input
        if not earlier or not target.requires_grad:
            continue
        found += _cut(weights, earlier, _rows_of(target, earlier, bench.generator))
    return found


def _cut(weights: dict[str, Pair], earlier: list[Use], rows: list[list[int]]) -> Iterator[Pair]:
    done: set[str] = set()
    for use, found in zip(earlier, rows, strict=True):
        producer = weights[use.parameter]
        if found and len(found) < producer.width and producer.producer not in done:
            done.add(producer.producer)
            yield evolve(producer, rows=torch.tensor(found))


def _rows_of(target: Tensor, earlier: list[Use], generator: torch.Generator) -> list[list[int]]:
    """For every earlier product the sorted rows that some input channel of `target` is a multiple of."""
    width = target.shape[-1]
    weight = torch.randn(target.shape[:-1], generator=generator, dtype=target.dtype)
    sums = (target * weight[..., None]).flatten(0, -2).sum(0)  # [I]
    known: dict[int, list[int]] = {}

    def at(c: int) -> list[int]:
        if c not in known:
            known[c] = _sources(sums[c], earlier)
        return known[c]

    step = 1 if width <= DENSE else width // 64
    marks = sorted({0, 1, width - 1, *range(0, width, step)})
    for a, b in pairwise(marks):
        _fill(at, known, a, b)
    return [sorted({r[i] for r in known.values() if r[i] >= 0}) for i in range(len(earlier))]


def _fill(at: Callable[[int], list[int]], known: dict[int, list[int]], a: int, b: int) -> None:
    """Know every channel from a to b: by interpolation where both ends agree, else by halving."""
    first, last = at(a), at(b)
    if b - a < 2:
        return
    slopes = [
        0 if f < 0 and s < 0 else (s - f) / (b - a) if f >= 0 and s >= 0 else None
        for f, s in zip(first, last, strict=True)
    ]
    if all(slope in (0, 1, 2) for slope in slopes):
        for c in range(a + 1, b):
            known[c] = [f + int(slope or 0) * (c - a) if f >= 0 else -1 for f, slope in zip(first, slopes, strict=True)]
        return
    middle = (a + b) // 2
    _fill(at, known, a, middle)
    _fill(at, known, middle, b)


def _sources(value: Tensor, earlier: list[Use]) -> list[int]:
    """For every earlier product the one row that `value` is homogeneous in, or -1."""
    gradients = torch.autograd.grad(value, [u.output for u in earlier], retain_graph=True, allow_unused=True)
    found = []
    for use, gradient in zip(earlier, gradients, strict=True):
        row = -1
        if gradient is not None and bool(value != 0):
            euler = (use.output * gradient).flatten(0, -2).sum(0) / value  # [R]
            near = torch.stack([(euler - k).abs() < RTOL for k in DEGREES]).any(0)
            row = int(near.nonzero()[0]) if bool(near.any()) else -1
        found.append(row)
    return found
