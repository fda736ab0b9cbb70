"""`coldpress new`: the package of a plugin, which installs and passes its tests as it is."""

from pathlib import Path
from typing import Annotated

import typer

from coldpress.cli.console import out
from coldpress.cli.option import option


def new(
    kind: Annotated[
        str, typer.Argument(help="modifier, observer, pipeline, format, source or dataset.", show_default=False)
    ],
    name: Annotated[str, typer.Argument(help="Small letters and dashes, such as top-rows.", show_default=False)],
    folder: Annotated[Path, option(None, "--folder", "DIR", "Where the package's folder is made.")] = Path(),
) -> None:
    """Make the package of a new plugin: module, metadata, method card, example and tests that pass.

    coldpress new modifier top-rows
    """
    from coldpress.scaffold import new_package

    written = new_package(kind, name, folder)
    from rich.text import Text

    home = next(path for path in written if path.name == "pyproject.toml").parent
    for path in written:
        out().print(Text(str(path.relative_to(folder))), soft_wrap=True)
    out().print(Text(f'\ncd {home}\npip install -e ".[test]"\npytest', style="bold"), soft_wrap=True)
