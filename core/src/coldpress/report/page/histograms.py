"""Histograms of weights and inputs, of the layers that lose most."""

from collections.abc import Mapping, Sequence
from typing import Any

from coldpress.report.page.figures import WIDTH, Figure
from coldpress.report.page.svg import Axis, Drawing, log_axis
from coldpress.report.words import in_count

_HEAD, _PLOT, _FOOT, _GAP = 22, 96, 46, 12  # heights of a row: its name, bars, numbers, and what is between
_LEFT, _BETWEEN = 44, 56
_CAPTION = (
    "Counts by magnitude, both on log scales; the dashed line is the largest weight that the checkpoint has: a tail "
    "far to the right of the bulk widens every scale, so smooth or rotate it away, clip it, or make groups smaller."
)

Json = Mapping[str, Any]


def histogram_figure(lines: Sequence[Json]) -> Figure | None:
    """Weights and inputs of each layer that has histograms, worst first; None where none has."""
    found = sorted((line for line in lines if line.get("histograms")), key=lambda line: -(line["weight_error"] or 0))
    if not found:
        return None
    every = [part for line in found for part in line["histograms"].values()]
    drawing = Drawing(WIDTH, (_HEAD + _PLOT + _FOOT + _GAP) * len(found), "weights and inputs of the worst layers")
    wide = (WIDTH - 2 * _LEFT - _BETWEEN + 32) / 2
    tallest = max(max(part["counts"]) for part in every)
    for row, line in enumerate(found):
        top = row * (_HEAD + _PLOT + _FOOT + _GAP)
        drawing.text(_LEFT, top + 14, f"{line['name']}, weight error {line['weight_error']:.2%}", class_="label strong")
        for column, name in enumerate(("weights", "inputs")):
            left, part = _LEFT + column * (wide + _BETWEEN), line["histograms"].get(name)
            same = [other["histograms"][name] for other in found if name in other["histograms"]]
            if part is not None:
                x = log_axis([edge for one in same for edge in _range(one)], left, left + wide)
                y = log_axis([0.8, float(tallest)], top + _HEAD + _PLOT, top + _HEAD)
                _bars(drawing, part, (x, y), f"{line['name']}, {name}")
                drawing.text(left, top + _HEAD + _PLOT + 32, f"{name}: {_numbers(part)}")
    return Figure("Weights and inputs of the worst layers", str(drawing), _CAPTION)


def _edges(part: Json) -> list[float]:
    """The edges of the bins, one more than there are counts."""
    return [2.0 ** (part["lowest"] + step / part["bins_per_octave"]) for step in range(len(part["counts"]) + 1)]


def _range(part: Json) -> tuple[float, float]:
    """The part of the magnitudes that is drawn: from a thousandth of the root mean square to the largest."""
    edges = _edges(part)
    return max(edges[0], 1e-3 * part["rms"] or edges[0]), max(edges[-1], part["largest"])


def _bars(drawing: Drawing, part: Json, axes: tuple[Axis, Axis], label: str) -> None:
    x, y = axes
    for value in x.ticks()[:: max(1, len(x.ticks()) // 5)]:
        drawing.text(x(value), y.start + 15, f"{value:g}", anchor="middle")
    for value in (1, 100, 10_000, 1_000_000):
        if y.low <= value <= y.high:
            drawing.add("line", x1=x.start, x2=x.end, y1=y(value), y2=y(value), class_="grid")
            drawing.text(x.start - 5, y(value) + 4, in_count(value), anchor="end")
    edges = _edges(part)
    for low, high, count in zip(edges, edges[1:], part["counts"], strict=False):
        if count and high > x.low:
            words = f"{label}: {count} of {part['values']} between {low:.3g} and {high:.3g}"
            at, size = (x(low), y(count)), (max(x(high) - x(low) - 0.5, 0.5), y.start - y(count))
            drawing.bar(at, size, class_="bar after", title=words)
    if "largest_kept" in part and part["largest_kept"] > 0:
        place = x(part["largest_kept"])
        words = f"{label}: the largest is {part['largest_kept']:.4g} in the checkpoint"
        drawing.add("line", x1=place, x2=place, y1=y.start, y2=y.end, class_="reference", title=words)


def _numbers(part: Json) -> str:
    """The largest in root mean squares, and how heavy the tails are."""
    if not part["rms"]:
        return "all are 0"
    high, times = (
        f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        for value in (part["largest"], part["largest"] / part["rms"])
    )
    return f"largest {high}, {times} RMS; kurtosis {part['kurtosis']:.3g}"
