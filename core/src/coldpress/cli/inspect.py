"""`coldpress inspect`: what a checkpoint holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coldpress.arguments.checks import path
from coldpress.cli.console import out, print_json
from coldpress.cli.option import Json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from coldpress.report.contents import Contents

_MOST_ODD = 5


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of safetensors files.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Say what a checkpoint holds: schemes, bits per weight, sizes, what was left alone.

    Reads headers only, so it is quick on any size; works on any folder of safetensors files.
    """
    from coldpress.report.contents import contents_of

    contents = contents_of(Path(path(folder)))
    if as_json:
        print_json("inspect", contents.to_dict())
        return
    for part in _shown(contents):
        out().print(part)


def _shown(contents: "Contents") -> "list[RenderableType]":
    from rich.text import Text

    from coldpress.cli.summary import bits, reasons, zero_weights
    from coldpress.report.report import NAME
    from coldpress.report.table import facts
    from coldpress.report.words import in_bytes, in_count

    rows = [
        ("architecture", contents.architecture or "not said (no config.json)"),
        ("method", contents.method or "none: a plain model"),
        ("weights", in_count(contents.weights())),
        ("bits per weight", bits(contents)),
        *zero_weights(contents.zeros),
        ("size", f"{in_bytes(contents.nbytes())} tensors, {in_bytes(contents.other_nbytes)} other files"),
    ]
    parts = [facts(rows), Text(""), _parts(contents)]
    parts += reasons(contents.left_alone, more=f"all of them in {NAME} or with --json")
    if contents.odd:
        shown = list(contents.odd[:_MOST_ODD])
        rest = len(contents.odd) - len(shown)
        parts += [Text(f"\nnot {contents.dtype}", style="bold"), facts(shown)]
        parts += [Text(f"and {rest} more, all of them with --json", style="dim")] if rest else []
    return parts


def _parts(contents: "Contents") -> "RenderableType":
    from coldpress.report.table import grid
    from coldpress.report.words import in_bytes, in_count

    columns = ("tensors", "modules", "weights", "size", "scales", "bits")
    rows = [
        (
            part.name,
            str(part.count),
            in_count(part.weights),
            in_bytes(part.nbytes),
            in_bytes(part.companion_nbytes) if part.quantized else "",
            f"{part.bits():.2f}",
        )
        for part in contents.parts
    ]
    return grid(columns, rows, numbers=columns[1:])
