"""`coldpress report`: what a run did, as a page."""

from pathlib import Path
from typing import Annotated

import typer

from coldpress.arguments.checks import path
from coldpress.cli.console import print_path
from coldpress.cli.option import option


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that coldpress wrote.", show_default=False)],
    output: Annotated[
        Path | None, option(None, "--output/-o", "FILE", "Where to write the page.", shown="report.html in DIR")
    ] = None,
) -> None:
    """Write the page that shows what a run did: errors, sizes, time, memory, what was left alone and why.

    One file that opens offline; every output has one, and this makes it again from report.json and evaluation.json.
    """
    from coldpress.report.page.folder import write_page

    print_path(write_page(Path(path(folder)), None if output is None else Path(path(output))))
