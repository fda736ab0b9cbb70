"""The plots of a report, each with one sentence that says how to read it."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from attrs import frozen

from coldpress.report.page.place import Cell, cells_of, values_of
from coldpress.report.page.svg import Axis, Drawing, log_axis
from coldpress.report.words import in_bytes, in_time

WIDTH = 760
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 34
_COLOURS, _SHADES = 8, 8
_OUTLIER, _FAR = 1.15, 6.0  # times the median of its kind, and median deviations of the logarithm above it
_MOST_OUTLIERS = 5
_ROW = 18
_LINE, _NAME = 12, 150  # height and width that a name takes


@frozen
class Figure:
    """One plot.

    Attributes:
        title: above it.
        drawing: SVG.
        caption: how to read it, and what to do.
    """

    title: str
    drawing: str
    caption: str


def error_figure(lines: Sequence[Mapping[str, Any]], number: str, *, title: str, caption: str) -> Figure | None:
    """A number of every layer by block, a line for each kind; None where no layer of a block has it.

    Args:
        lines: of the report.
        number: which, in a line or its notes.
        title: of the figure.
        caption: of the figure.
    """
    cells = [cell for cell in cells_of(values_of(lines, number)) if cell.value > 0]
    if not cells:
        return None
    kinds, ratio = list(dict.fromkeys(cell.kind for cell in cells)), number.endswith("_ratio")
    legend = -(-len(kinds) // 3) * _ROW
    height = 300 + legend
    drawing = Drawing(WIDTH, height, title)
    x = _block_axis(cells)
    y = log_axis([cell.value for cell in cells] + [1.0] * ratio, height - _BOTTOM, _TOP + legend)
    _frame(drawing, x, y)
    if ratio:
        drawing.add("line", x1=x.start, x2=x.end, y1=y(1.0), y2=y(1.0), class_="reference", title="plain rounding")
        drawing.text(x.end, y(1.0) - 4, "rounding", anchor="end")
    for index, kind in enumerate(kinds):
        own = [cell for cell in cells if cell.kind == kind]
        _series(drawing, own, x, y, index)
        at = (_LEFT + index % 3 * 230, _TOP + index // 3 * _ROW)
        drawing.point(*at, index, class_=f"fill c{index % _COLOURS}", title=kind)
        drawing.text(at[0] + 10, at[1] + 4, kind)
    _name_outliers(drawing, _outliers(cells), x, y)
    return Figure(title, str(drawing), caption)


def _series(drawing: Drawing, cells: Sequence[Cell], x: Axis, y: Axis, index: int) -> None:
    """One kind: a line with a point for each block."""
    colour = f"c{index % _COLOURS}"
    path = " ".join(f"{x(cell.block):.1f},{y(cell.value):.1f}" for cell in cells)
    drawing.add("polyline", points=path, class_=f"line {colour}")
    for cell in cells:
        drawing.point(x(cell.block), y(cell.value), index, class_=f"fill mark {colour}", title=cell.words())


def _name_outliers(drawing: Drawing, cells: Sequence[Cell], x: Axis, y: Axis) -> None:
    """Write the names of cells beside their points, each below those that it would cover."""
    written: list[tuple[float, float]] = []
    for cell in sorted(cells, key=lambda cell: -cell.value):
        end = cell.block > (x.low + x.high) / 2
        at, height = x(cell.block) + (-7 if end else 7), y(cell.value) + 4
        while any(abs(height - other) < _LINE and abs(at - place) < _NAME for place, other in written):
            height += 1
        written.append((at, height))
        drawing.text(at, height, f"{cell.block} {cell.kind}", anchor="end" if end else "start")


def _outliers(cells: Sequence[Cell]) -> list[Cell]:
    """The few cells that are farthest above the median of their kind, if they are far."""
    far: dict[Cell, float] = {}
    for kind in {cell.kind for cell in cells}:
        own = [cell for cell in cells if cell.kind == kind]
        middle = median(math.log(cell.value) for cell in own)
        spread = median(abs(math.log(cell.value) - middle) for cell in own)
        above = {cell: math.log(cell.value) - middle for cell in own}
        far |= {cell: up for cell, up in above.items() if up > max(math.log(_OUTLIER), _FAR * spread)}
    return sorted(far, key=lambda cell: -far[cell])[:_MOST_OUTLIERS]


def _block_axis(cells: Sequence[Cell]) -> Axis:
    blocks = [cell.block for cell in cells]
    return Axis(min(blocks) - 0.5, max(blocks) + 0.5, _LEFT, WIDTH - _RIGHT)


def _frame(drawing: Drawing, x: Axis, y: Axis) -> None:
    """Grid lines with their numbers."""
    for value in y.ticks():
        drawing.add("line", x1=x.start, x2=x.end, y1=y(value), y2=y(value), class_="grid")
        drawing.text(x.start - 6, y(value) + 4, f"{value:g}", anchor="end")
    for value in x.ticks():
        if value == int(value):
            drawing.text(x(value), y.start + 18, f"{value:g}", anchor="middle")
    drawing.text((x.start + x.end) / 2, y.start + 31, "block", anchor="middle")


def heat_map(lines: Sequence[Mapping[str, Any]], number: str, *, title: str, caption: str) -> Figure | None:
    """A number of every layer, block by kind, as shades; None where no layer of a block has it."""
    cells = [cell for cell in cells_of(values_of(lines, number)) if cell.value > 0]
    if not cells:
        return None
    kinds = list(dict.fromkeys(cell.kind for cell in cells))
    left = min(8.0 + 6.6 * max(len(kind) for kind in kinds), 320.0)
    height = _TOP + len(kinds) * _ROW + 54
    drawing = Drawing(WIDTH, height, title)
    blocks = [cell.block for cell in cells]
    x = Axis(min(blocks), max(blocks) + 1, left, WIDTH - _RIGHT)
    low, high = min(cell.value for cell in cells), max(cell.value for cell in cells)
    shade = Axis(low, high if high > low else low * 2, 0, _SHADES - 0.001, log=True)
    for row, kind in enumerate(kinds):
        drawing.text(left - 6, _TOP + row * _ROW + 13, kind, anchor="end")
    for cell in cells:
        at, wide = (x(cell.block), _TOP + kinds.index(cell.kind) * _ROW), x(cell.block + 1) - x(cell.block)
        drawing.bar(at, (wide, _ROW), class_=f"cell h{int(shade(cell.value))}", title=cell.words())
    bottom = _TOP + len(kinds) * _ROW
    for value in x.ticks():
        if value == int(value) and value < x.high:
            drawing.text(x(value + 0.5), bottom + 15, f"{value:g}", anchor="middle")
    for step in range(_SHADES):
        drawing.bar((left + 80 + step * 24, bottom + 26), (24, 12), class_=f"h{step}")
    drawing.text(left + 74, bottom + 36, f"{low:.3g}", anchor="end")
    drawing.text(left + 86 + _SHADES * 24, bottom + 36, f"{high:.3g}")
    return Figure(title, str(drawing), caption)


def size_figure(kinds: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Bytes of each kind of layer before and after; None where that is not known."""
    kinds = sorted((kind for kind in kinds if kind["before"] or kind["after"]), key=lambda kind: -kind["before"])[:24]
    if not kinds:
        return None
    names = [f"{kind['name']} x {kind['count']}" for kind in kinds]
    left = min(8.0 + 6.6 * max(map(len, names)), 360.0)
    height = _TOP + 30 * len(kinds) + 8
    drawing = Drawing(WIDTH, height, "size before and after by kind of layer")
    x = Axis(0, max(max(kind["before"], kind["after"]) for kind in kinds), left, WIDTH - 90)
    for row, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        top = _TOP + 30 * row
        drawing.text(left - 6, top + 16, name, anchor="end")
        for offset, when in ((0, "before"), (12, "after")):
            words = f"{name}: {in_bytes(kind[when])} {when}" + (f", {kind['scheme'] or 'as it is'}" if offset else "")
            width = max(x(kind[when]) - left, 0.5)
            drawing.bar((left, top + offset), (width, 11), class_=f"bar {when}", title=words)
            drawing.text(left + width + 4, top + offset + 10, in_bytes(kind[when]))
    caption = "Each kind of layer as it was (grey) and as it is stored now (blue), scales included: what stays long is "
    return Figure("Size by kind of layer", str(drawing), caption + "what to compress next.")


def time_figure(stages: Sequence[Mapping[str, Any]], planned: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Seconds of each stage, planned and actual."""
    expected = {stage["name"]: float(stage["seconds"]) for stage in planned}
    rows = [(s["stage"], float(s["seconds"]), expected.get(s["stage"])) for s in stages if s.get("stage")]
    if not rows or not any(actual for _, actual, _ in rows):
        return None
    total, plan = sum(actual for _, actual, _ in rows), sum(value or 0 for _, _, value in rows)
    plans = f"; {in_time(plan)} planned" if plan else ""
    drawing = _stage_bars([(name, actual, value) for name, actual, value in rows], in_time, "seconds by stage")
    caption = (
        f"Bars are what each stage took ({in_time(total)} in all{plans}), the line across a bar is the plan: a bar far "
    )
    return Figure("Time by stage", drawing, caption + "above its line is where the run waited for disk or memory.")


def memory_figure(stages: Sequence[Mapping[str, Any]], predicted: Mapping[str, Any]) -> Figure | None:
    """Peak memory of the process up to the end of each stage, beside what was planned for the stage."""
    now = predicted.get("memory", {}).get("before_the_run", 0)
    expected = {stage["name"]: float(now + stage["host"]) for stage in predicted.get("stages", ())}
    rows = [(s["stage"], float(s["host_bytes"]), expected.get(s["stage"])) for s in stages if s.get("host_bytes")]
    if not rows:
        return None
    drawing = _stage_bars(rows, in_bytes, "memory by stage")
    caption = (
        "Bars are the most that the process held until the end of a stage, opening the model included; the line across "
        "a bar is the plan of this stage alone: where bars step up, fewer samples or a smaller batch would help."
    )
    return Figure("Memory by stage", drawing, caption)


def _stage_bars(rows: Sequence[tuple[str, float, float | None]], words: Any, label: str) -> str:
    """A bar for each stage with a mark where the plan is."""
    drawing = Drawing(WIDTH, 210, label)
    x = Axis(0, len(rows), _LEFT + 16, WIDTH - _RIGHT)
    y = Axis(0, max(max(actual, plan or 0) for _, actual, plan in rows) * 1.05 or 1.0, 210 - _BOTTOM, _TOP)
    for value in y.ticks():
        drawing.add("line", x1=x.start, x2=x.end, y1=y(value), y2=y(value), class_="grid")
        drawing.text(x.start - 6, y(value) + 4, words(value), anchor="end")
    wide = x(1) - x(0)
    for index, (name, actual, plan) in enumerate(rows):
        title = f"{name}: {words(actual)}" + ("" if plan is None else f", planned {words(plan)}")
        size = (wide * 0.8, y.start - y(actual))
        drawing.bar((x(index) + wide * 0.1, y(actual)), size, class_="bar after", title=title)
        if plan is not None:
            drawing.add("line", x1=x(index), x2=x(index + 1), y1=y(plan), y2=y(plan), class_="plan", title=title)
    drawing.text(x.start, y.start + 18, rows[0][0])
    if len(rows) > 1:
        drawing.text(x.end, y.start + 18, rows[-1][0], anchor="end")
    return str(drawing)
