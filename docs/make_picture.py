"""Writes docs/pictures/report.svg from a report: its sentence, and the output error of each layer beside rounding's.

The run, and its evaluation:

    coldpress compress smollm2 --recipe gptq-w4a16 --recipe-arg group_size=64 --num-calibration-samples 32 ...
    coldpress evaluate out/picture --against smollm2 --max-tokens 2048 --report out/picture
    python docs/make_picture.py out/picture
"""

import json
import sys
import textwrap
from importlib.resources import files
from pathlib import Path

from coldpress.report.page import figures, sections
from coldpress.report.page.folder import read_evaluation
from coldpress.report.page.svg import Drawing

TARGET = Path(__file__).with_name("pictures") / "report.svg"
LINE, MARGIN = 26, 20
OWN = "text { font: 11px system-ui, sans-serif } .verdict { font: 600 17px system-ui, sans-serif }"


def picture(folder: Path) -> str:
    """SVG that stands alone: the plot of the report with its sentence above and the style of its page inside."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    words = textwrap.wrap(sections.verdict(report, read_evaluation(folder)), 70)
    title = "Output error of each layer beside that of rounding"
    figure = figures.error_figure(report["layers"], "rounding_ratio", title=title, caption="")
    assert figure is not None, "no layer has the error of its outputs: compress with GPTQ"
    top = MARGIN + LINE * (len(words) + 1)
    _, _, wide, high = map(float, figure.drawing.partition('viewBox="')[2].partition('"')[0].split())

    whole = Drawing(wide + 2 * MARGIN, top + high + MARGIN, title)
    whole.add("style", text=_style())
    whole.bar((0, 0), (wide + 2 * MARGIN, top + high + MARGIN), class_="none")
    for number, line in enumerate(words):
        whole.text(MARGIN, MARGIN + LINE * (number + 0.5), line, class_="label verdict")
    whole.text(MARGIN, top - 8, f"{title}; below the line the method gains", class_="label")
    plot = figure.drawing.replace("<svg ", f'<svg x="{MARGIN}" y="{top}" width="{wide:g}" height="{high:g}" ', 1)
    return f"{str(whole).removesuffix('</svg>')}{plot}</svg>\n"


def _style() -> str:
    """Colours and marks of the page, light and dark, without its rules for text and tables."""
    text = (files("coldpress.report.page") / "style.css").read_text(encoding="utf-8").partition("@media print")[0]
    colours, _, rest = text.partition("* {")
    return f"{colours}.label {rest.partition('.label ')[2]}{OWN}"


if __name__ == "__main__":
    TARGET.write_text(picture(Path(sys.argv[1])), encoding="utf-8")
