"""Histograms of weights and inputs: counts by magnitude in bins of fixed edges, so that they merge exactly."""

from collections.abc import Mapping
from heapq import nlargest
from typing import Any

import torch
from attrs import define
from torch import Tensor

from coldpress.layer_report import LayerReport

WORST = 5
"""Layers that have histograms in a report."""

_STEPS = 4  # bins an octave
_LOWEST, _HIGHEST = -24, 24  # octaves; what is outside is in the first or last bin
_BINS = _STEPS * (_HIGHEST - _LOWEST)
_SAMPLE = 1 << 14  # values of one tensor that are counted


@define(eq=False)
class Histogram:
    """How many numbers are how large; a few kilobytes, whatever is counted.

    Of a large tensor every n-th row is counted, which is enough to see a shape; the largest is that of all rows.

    Attributes:
        sums: counts of the bins, then the count of all, and the sums of second and of fourth powers, float64.
        largest: magnitude, [], float32.
    """

    sums: Tensor
    largest: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Histogram":
        """That of finite numbers, [T, I]; at least one of them."""
        step = max(1, -(-x.numel() // _SAMPLE))
        rows = x[min(step // 2, (len(x) - 1) // 2) :: step]
        values = rows.abs().flatten().double()
        counts = values.new_zeros(_BINS).index_add_(0, _places(values), torch.ones_like(values))
        squares = values.square()
        moments = torch.stack([values.new_tensor(len(values)), squares.sum(), squares.square().sum()])
        return cls(torch.cat([counts, moments]), largest(x))

    def merge(self, other: "Histogram") -> "Histogram":
        """That of the numbers of both."""
        return Histogram(self.sums + other.sums, torch.maximum(self.largest, other.largest))

    def to_dict(self) -> dict[str, Any]:
        """What `report.json` has: counts from the first bin that is not empty, with the lower edge of that bin as log2.

        `kurtosis` is 3 for a normal distribution; None where all numbers are 0.
        """
        *counts, total, squares, fourths = self.sums.tolist()
        end = int(_places(self.largest.double()))
        counts[end] = counts[end] or 1.0  # it may be in a row that was not counted
        full = [index for index, count in enumerate(counts) if count]
        first, last = full[0], full[-1]
        square = squares / total
        return {
            "values": int(total),
            "largest": _short(self.largest.item()),
            "rms": _short(square**0.5),
            "kurtosis": _short(fourths / total / square**2) if square else None,
            "lowest": _LOWEST + first / _STEPS,
            "bins_per_octave": _STEPS,
            "counts": [int(count) for count in counts[first : last + 1]],
        }


def _places(magnitudes: Tensor) -> Tensor:
    """The bin of each magnitude; zero is in the first."""
    return ((magnitudes.log2() * _STEPS).floor() - _STEPS * _LOWEST).clamp(0, _BINS - 1).long()


def largest(x: Tensor) -> Tensor:
    """The largest magnitude of a tensor that is not empty, [], float32."""
    low, high = x.aminmax()  # in 16 bits thirty times as fast as a norm
    return torch.maximum(high, -low).float()


def keep_worst(report: Mapping[str, LayerReport]) -> None:
    """Take histograms away from all lines of a report but those of the layers that lose most."""
    found = [line for line in report.values() if line.histograms]
    worst = {line.name for line in nlargest(WORST, found, key=lambda line: line.weight_error or 0.0)}
    for line in found:
        if line.name not in worst or not line.weight_error:
            line.histograms = {}


def _short(value: float) -> float:
    return float(f"{value:.6g}")
