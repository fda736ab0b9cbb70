"""The page of two checkpoints that are compared: how far their weights are, block by kind."""

from pathlib import Path

from coldpress.checkpoint.disk import disk_errors
from coldpress.report.difference import Difference
from coldpress.report.page import figures
from coldpress.report.page.page import rendered
from coldpress.report.words import in_bytes

_MOST_LINES = 1000
_ERROR = (
    "Size of B - A over that of A for each weight, on a log scale: a point that is named differs more than others of "
    "its kind; weights that are equal have no point."
)
_MAP = "Dark cells differ least, and cells that are missing are equal: a bright row or column is where the two part."
_CODES = "Share of codes that differ, of layers that both have in codes of one grid."


def page_of_difference(found: Difference) -> str:
    """One HTML file that is also XML, as that of a report is."""
    lines = [
        {"name": one.name.removesuffix(".weight"), "error": one.error or 0.0, "codes": one.codes_changed or 0.0}
        for one in found.tensors
    ]
    drawn = (
        figures.error_figure(lines, "error", title="Weights by block and kind", caption=_ERROR),
        figures.heat_map(lines, "error", title="Weights, block by kind", caption=_MAP),
        figures.heat_map(lines, "codes", title="Codes, block by kind", caption=_CODES),
    )
    sizes = found.nbytes()
    changed = [one for one in found.tensors if one.status not in ("equal", "same weights")]
    content = {
        "a": str(found.folders[0]),
        "b": str(found.folders[1]),
        "verdict": ("The weights are the same: " if found.is_equal() else "The weights differ: ")
        + ", ".join(f"{count} {status}" for status, count in found.counts().items())
        + ".",
        "figures": [figure for figure in drawn if figure is not None],
        "sizes": [("A", in_bytes(sizes[0])), ("B", in_bytes(sizes[1]))],
        "files": [("config.json", ", ".join(found.config) or "equal"), *found.files.items()],
        "recipe": "\n".join(found.recipe),
        "rows": [
            (
                one.name,
                one.schemes[0] or "whole",
                one.schemes[1] or "whole",
                "" if one.codes_changed is None else f"{one.codes_changed:.2%}",
                f"{one.error:.2%}" if one.status == "differs" else one.status,
            )
            for one in sorted(changed, key=lambda one: -(one.error or 0.0))
        ],
    }
    return rendered("difference.html", content, most=_MOST_LINES)


def write_difference(found: Difference, place: Path) -> Path:
    """Write the page to a file.

    Raises:
        CheckpointError: it cannot be written.
    """
    with disk_errors(place):
        place.write_text(page_of_difference(found), encoding="utf-8")
    return place
