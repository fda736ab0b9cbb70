"""Mixtures of experts in a report: tokens of each expert, how balanced the load is, and what each is worth."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, median
from typing import Any

from attrs import define, field

from coldpress.report.page.figures import Figure
from coldpress.report.page.svg import Axis, Drawing
from coldpress.report.words import in_count

_WIDTH, _RIGHT, _TOP, _ROW, _SHADES = 760, 12, 12, 18, 8
_MOST = 4096  # cells of a figure; the page shall stay below a megabyte, and the table has all mixtures
_FEW = ", fewer than its columns"


@define
class Mixture:
    """What a report knows of the experts of one module, by their numbers.

    Attributes:
        tokens: of the calibration data.
        few: those that saw too few of them.
        saliency: where experts were ranked.
        kept: the numbers of those that stayed, where some were dropped.
    """

    tokens: dict[int, int] = field(factory=dict)
    few: set[int] = field(factory=set)
    saliency: dict[int, float] = field(factory=dict)
    kept: list[int] | None = None


def mixtures_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, Mixture]:
    """The mixtures of a report, by the name of the module of experts: as experts were ranked, or as they were seen."""
    found: dict[str, Mixture] = {}
    ranked = {line["name"] for line in lines if "tokens_of_experts" in line.get("notes", {})}
    for line in lines:
        notes = line.get("notes", {})
        if line["name"] in ranked:
            tokens = {i: int(count) for i, count in enumerate(notes["tokens_of_experts"])}
            few = {i for i, count in tokens.items() if not count}
            found[line["name"]] = Mixture(tokens, few, dict(enumerate(notes.get("saliency", []))), notes.get("kept"))
        elif "few_tokens" in notes:
            home, _, number = line["name"].rpartition(".")[0].rpartition(".")
            if number.isdigit() and home not in ranked:
                one = found.setdefault(home, Mixture())
                one.tokens[int(number)] = max(one.tokens.get(int(number), 0), int(notes.get("tokens", 0)))
                one.few |= {int(number)} if notes["few_tokens"] else set()
    return found


def rows(mixtures: Mapping[str, Mixture]) -> list[tuple[str, ...]]:
    """A row of words for each mixture: experts, tokens, load, few, saliency, kept."""
    found: list[tuple[str, ...]] = []
    for name, one in mixtures.items():
        counts, average = list(one.tokens.values()), mean(one.tokens.values())
        found.append(
            (
                name,
                str(len(counts)),
                _spread(counts, lambda count: in_count(round(count))),
                f"{max(counts) / average:.2f}" if average else "",
                str(len(one.few)) if one.few else "",
                _spread(list(one.saliency.values()), lambda value: f"{value:.3g}"),
                str(len(one.kept)) if one.kept is not None else "",
            )
        )
    return found


def token_figure(mixtures: Mapping[str, Mixture]) -> Figure | None:
    """Tokens of each expert of each mixture; starved ones have a border.  None where there are too many to draw."""
    if not 0 < sum(len(one.tokens) for one in mixtures.values()) <= _MOST:
        return None
    counts = [count for one in mixtures.values() for count in one.tokens.values()]
    shade = Axis(1, max(2, *counts), 0, _SHADES - 0.001, log=True)
    cells = {
        name: {
            i: (
                None if count == 0 else int(shade(count)),
                i in one.few,
                f"{in_count(count)} tokens{_FEW * (i in one.few)}",
            )
            for i, count in one.tokens.items()
        }
        for name, one in mixtures.items()
    }
    caption = (
        "A cell for each expert, light where it saw many tokens of the calibration data; a border marks experts with "
        "too few, as a rule fewer than input columns: calibrate with more data, or with moe_calibrate_all_experts."
    )
    ends = f"{min(counts)} to {max(counts)} tokens"
    return Figure("Tokens of each expert", _cells(cells, ends, "tokens of each expert"), caption)


def saliency_figure(mixtures: Mapping[str, Mixture]) -> Figure | None:
    """What each expert is worth, over the most that one of its mixture is; those that were dropped have a border.

    None where there are too many to draw.
    """
    ranked = {name: one for name, one in mixtures.items() if one.saliency and max(one.saliency.values()) > 0}
    if not 0 < sum(len(one.saliency) for one in ranked.values()) <= _MOST // 2:
        return None
    cells = {}
    for name, one in ranked.items():
        most, gone = max(one.saliency.values()), set(one.saliency) - set(one.kept or one.saliency)
        cells[name] = {
            i: (
                None if value <= 0 else min(int(value / most * _SHADES), _SHADES - 1),
                i in gone,
                f"saliency {value:.3g}{', dropped' * (i in gone)}",
            )
            for i, value in one.saliency.items()
        }
    caption = (
        "A cell for each expert, light where its saliency is near the largest of its mixture; a border marks experts "
        "that were dropped. Where dropped ones are as light as others, the choice was a close one: evaluate the result."
    )
    return Figure(
        "Saliency of each expert", _cells(cells, "0 to the largest of a mixture", "saliency of each expert"), caption
    )


Cells = Mapping[str, Mapping[int, tuple[int | None, bool, str]]]
"""Name of a mixture to its experts: shade, None where there is nothing; whether there is a border; what is said."""


def _cells(mixtures: Cells, ends: str, label: str) -> str:
    """A row of cells for each mixture."""
    left = min(8.0 + 6.6 * max(map(len, mixtures)), 300.0)
    drawing = Drawing(_WIDTH, _TOP + len(mixtures) * _ROW + 30, label)
    most = max(max(experts) + 1 for experts in mixtures.values())
    x = Axis(0, most, left, _WIDTH - _RIGHT)
    for row, (name, experts) in enumerate(mixtures.items()):
        drawing.text(left - 6, _TOP + row * _ROW + 13, name, anchor="end")
        for index, (shade, border, words) in experts.items():
            at, size = (x(index), _TOP + row * _ROW), (x(index + 1) - x(index), _ROW - 1)
            colour = "none" if shade is None else f"h{shade}"
            title = f"{name}, expert {index}: {words}"
            drawing.bar(at, size, class_=f"cell {colour}{' few' if border else ''}", title=title)
    drawing.text(left, _TOP + len(mixtures) * _ROW + 18, f"experts 0 to {most - 1}; {ends}")
    return str(drawing)


def _spread(values: Sequence[float], words: Callable[[float], str]) -> str:
    """The least, the median and the most of some numbers; one where all are equal, none where there are none."""
    if not values:
        return ""
    least, most = min(values), max(values)
    return words(most) if least == most else f"{words(least)}, {words(median(values))}, {words(most)}"
