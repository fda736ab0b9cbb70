"""`coldpress diff`: how two checkpoints differ."""

from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coldpress.arguments.checks import path
from coldpress.cli.console import out, print_json
from coldpress.cli.option import Json, option

if TYPE_CHECKING:
    from rich.console import RenderableType

    from coldpress.report.difference import Difference, TensorDifference

_MOST_LAYERS = 10
_FOLDER = "A checkpoint, compressed or not."


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help=_FOLDER, show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help=_FOLDER, show_default=False)],
    output: Annotated[
        Path | None, option(None, "--output/-o", "FILE", "Also write a page with plots.", shown="none")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two checkpoints: recipes, sizes, and layer by layer schemes, codes and weights.

    Compressed weights are decoded, so that checkpoints in different formats, or a checkpoint and its original, can be
    compared.
    """
    from coldpress.report import Progress
    from coldpress.report.difference import difference_of

    found = difference_of(Path(path(a)), Path(path(b)), progress=Progress())
    if output is not None:
        from coldpress.report.page.compared import write_difference

        write_difference(found, Path(path(output)))
    if as_json:
        print_json("diff", found.to_dict())
        return
    for part in _shown(found):
        out().print(part)


def _shown(found: "Difference") -> "list[RenderableType]":
    from rich.text import Text

    from coldpress.report.table import facts
    from coldpress.report.words import in_bytes

    sizes, counts = found.nbytes(), found.counts()
    files = [(name, status) for name, status in found.files.items() if status != "equal"]
    rows = [
        ("weights", "the same" if found.is_equal() else "differ"),
        ("tensors", ", ".join(f"{count} {status}" for status, count in counts.items())),
        ("size", f"{in_bytes(sizes[0])} and {in_bytes(sizes[1])}"),
        ("config.json", ", ".join(found.config) or "the same"),
        ("other files", ", ".join(f"{name} {status}" for name, status in files) or "the same"),
        ("recipe", "differs" if found.recipe else "the same"),
    ]
    parts: list[RenderableType] = [facts(rows)]
    if found.recipe:
        parts += [Text(""), *(Text(line) for line in found.recipe)]
    changed = [tensor for tensor in found.tensors if tensor.status not in ("equal", "same weights")]
    return [*parts, Text(""), _layers(changed)] if changed else parts


def _layers(changed: "list[TensorDifference]") -> "RenderableType":
    """Those that differ most, first those that cannot be compared."""
    from rich.console import Group
    from rich.text import Text

    from coldpress.report.table import grid

    ordered = sorted(changed, key=lambda tensor: inf if tensor.error is None else tensor.error, reverse=True)
    columns = ("tensor", "A", "B", "codes", "weights")
    rows = [
        (
            tensor.name,
            tensor.schemes[0] or "whole",
            tensor.schemes[1] or "whole",
            "" if tensor.codes_changed is None else f"{tensor.codes_changed:.2%}",
            f"{tensor.error:.2%}" if tensor.status == "differs" else tensor.status,
        )
        for tensor in ordered[:_MOST_LAYERS]
    ]
    rest = len(ordered) - len(rows)
    table = grid(columns, rows, numbers=columns[3:])
    return Group(table, Text(f"and {rest} more, all of them with --json", style="dim")) if rest else table
