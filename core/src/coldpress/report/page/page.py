"""The page of a report, from what `report.json`, the recipe, the manifest and evaluations say."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from coldpress.report.page import figures, histograms, mixtures, sections
from coldpress.report.page.figures import Figure
from coldpress.report.page.svg import printable

PAGE = "report.html"
MOST_BYTES = 1_000_000
_MOST_LINES = 1000  # of the table of all layers; report.json has the others

_ERROR = (
    "Each line is a kind of layer, each point the size of the change of a weight over the size of the weight, on a log "
    "scale; named points are far above others of their kind: give them more bits, smaller groups, or leave them out."
)
_RATIO = (
    "Squared error of the outputs over that of rounding to nearest with the same scales: below the line at 1 the "
    "method gains; near 1 it does not, and more or other calibration data may help."
)
_MAP = "Dark cells lose least; a bright row is a kind of layer to protect, a bright column a block to protect."


def page_of(
    report: Mapping[str, Any],
    *,
    recipe: str,
    manifest: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """One HTML file that is also XML, smaller than 1 MB, with its style and plots inside; no script, no network.

    Args:
        report: content of `report.json`.
        recipe: YAML that made the checkpoint.
        manifest: content of `manifest.json`; checksums of files are left out.
        evaluation: content of `evaluation.json`, as `coldpress evaluate --report` writes it; None where there is none.
    """
    measured = evaluation or {}
    lines, predicted = report.get("layers", []), report.get("predicted") or {}
    shown = {key: value for key, value in manifest.items() if key not in ("files", "recipe", "stages")}
    content = {
        "title": str(manifest.get("source") or "a model in memory"),
        "verdict": sections.verdict(report, measured),
        "numbers": sections.numbers(report, measured),
        "figures": list(_figures(report)),
        "evaluation": sections.evaluation_rows(measured),
        "tasks": sections.task_rows(measured),
        "worst": sections.worst_layers(lines),
        "meanings": [
            (note["key"].replace("_", " "), note["unit"], note["meaning"]) for note in report.get("notes", [])
        ],
        "mixtures": mixtures.rows(mixtures.mixtures_of(lines)),
        "fallbacks": sections.reasons(lines, "fallback"),
        "untouched": sections.reasons(lines, "untouched"),
        "engines": predicted.get("engines", []),
        "calibration": report.get("calibration") or {},
        "training": {k: v for k, v in (report.get("training") or {}).items() if not isinstance(v, list | dict)},
        "lines": lines,
        "recipe": recipe,
        "manifest": json.dumps(shown, indent=2, ensure_ascii=False),
    }
    page = rendered("page.html", content, most=_MOST_LINES)
    return page if len(page.encode()) < MOST_BYTES else rendered("page.html", content, most=0)


def _figures(report: Mapping[str, Any]) -> Iterable[Figure]:
    """The plots that there are numbers for."""
    lines, predicted, stages = report.get("layers", []), report.get("predicted") or {}, report.get("stages", [])
    drawn = (
        figures.error_figure(lines, "rounding_ratio", title="Output error beside rounding", caption=_RATIO),
        figures.error_figure(lines, "weight_error", title="Weight error by block and kind", caption=_ERROR),
        figures.heat_map(lines, "weight_error", title="Weight error, block by kind", caption=_MAP),
        figures.size_figure(predicted.get("layers", [])),
        figures.time_figure(stages, predicted.get("stages", [])),
        figures.memory_figure(stages, predicted),
        mixtures.token_figure(mixtures.mixtures_of(lines)),
        mixtures.saliency_figure(mixtures.mixtures_of(lines)),
        histograms.histogram_figure(lines),
    )
    return (figure for figure in drawn if figure is not None)


def rendered(template: str, content: Mapping[str, Any], *, most: int) -> str:
    """A template of this folder with its style, filled; what is filled in is escaped.

    Args:
        template: name of the file.
        content: of its variables.
        most: lines of its long table.
    """
    compiled, style = _compiled(template)
    return printable(compiled.render(**content, style=style, most=most))


@cache
def _compiled(template: str) -> tuple[Template, str]:
    """A template of this folder, compiled once in a process, and the style of all of them."""
    folder = files("coldpress.report.page")
    style, text = ((folder / name).read_text(encoding="utf-8") for name in ("style.css", template))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["notes"] = sections.notes
    return environment.from_string(text), style
