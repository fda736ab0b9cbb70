"""`coldpress datasets`: the calibration data that can be named."""

from typing import TYPE_CHECKING, Any

from coldpress.cli.console import out, print_json
from coldpress.cli.option import Json

if TYPE_CHECKING:
    from coldpress.registry import Plugin


def datasets(as_json: Json = False) -> None:
    """List the data sets that --dataset takes by name; any other name is a data set of the hub, or a file.

    coldpress compress MODEL --scheme W4A16 --dataset ultrachat_200k --output out
    """
    from coldpress.registry import available

    rows = [_row(plugin) for plugin in available("datasets")]
    if as_json:
        print_json("datasets", {"datasets": rows})
        return
    from rich.text import Text

    from coldpress.report.table import grid

    cells = [(row["name"], row["repo_id"] or f"of {row['distribution']}", _subset(row)) for row in rows]
    out().print(grid(("name", "where it is on the hub", "configuration, split"), cells))
    out().print(Text("\nof a distribution: it comes with that, and nothing is fetched.", style="dim"))


def _subset(row: dict[str, Any]) -> str:
    return ", ".join(str(row[key]) for key in ("config_name", "split") if row[key])


def _row(plugin: "Plugin") -> dict[str, Any]:
    from coldpress.plugin import HubDataset

    value = plugin.load()
    hub = value if isinstance(value, HubDataset) else None
    return {
        "name": plugin.name,
        "repo_id": None if hub is None else hub.repo_id,
        "config_name": None if hub is None else hub.config_name,
        "split": None if hub is None else hub.split,
        "distribution": plugin.distribution,
    }
