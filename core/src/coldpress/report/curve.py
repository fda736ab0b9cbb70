"""The curve of a training run, drawn as SVG: loss by optimizer step."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

NAME = "training_curve.svg"
_WIDTH, _HEIGHT, _MARGIN = 640, 320, 48


def training_curve(history: Iterable[Mapping[str, Any]], *, title: str = "training loss") -> str:
    """A plot of the losses that a Trainer logged.

    Args:
        history: entries with `step`, and `loss` or `eval_loss`.
        title: above the plot.

    Returns:
        SVG; an empty plot where nothing was logged.
    """
    entries = list(history)
    lines = {name: [(float(e["step"]), float(e[name])) for e in entries if name in e] for name in ("loss", "eval_loss")}
    points = [point for line in lines.values() for point in line]
    if not points:
        return _svg([], title, (0.0, 1.0), (0.0, 1.0))
    steps, losses = zip(*points, strict=True)
    span, reach = (min(steps), max(steps)), (min(losses), max(losses))
    return _svg([(name, line) for name, line in lines.items() if line], title, span, reach)


def _svg(
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    title: str,
    span: tuple[float, float],
    reach: tuple[float, float],
) -> str:
    colours = {"loss": "#2563eb", "eval_loss": "#dc2626"}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_WIDTH / 2}" y="20" text-anchor="middle">{escape(title)}</text>',
        f'<path d="M{_MARGIN} {_MARGIN} V{_HEIGHT - _MARGIN} H{_WIDTH - _MARGIN}" fill="none" stroke="black"/>',
        f'<text x="{_MARGIN}" y="{_HEIGHT - 30}">{span[0]:g}</text>',
        f'<text x="{_WIDTH - _MARGIN}" y="{_HEIGHT - 30}" text-anchor="end">step {span[1]:g}</text>',
        f'<text x="4" y="{_HEIGHT - _MARGIN}">{reach[0]:.3g}</text>',
        f'<text x="4" y="{_MARGIN + 4}">{reach[1]:.3g}</text>',
    ]
    for name, line in lines:
        path = " ".join(f"{_x(x, span):.1f},{_y(y, reach):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}"/>')
    return "\n".join([*parts, "</svg>", ""])


def _x(step: float, span: tuple[float, float]) -> float:
    return _MARGIN + (step - span[0]) / ((span[1] - span[0]) or 1.0) * (_WIDTH - 2 * _MARGIN)


def _y(loss: float, reach: tuple[float, float]) -> float:
    return _HEIGHT - _MARGIN - (loss - reach[0]) / ((reach[1] - reach[0]) or 1.0) * (_HEIGHT - 2 * _MARGIN)
