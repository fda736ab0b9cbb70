"""`coldpress plugins`: what is installed, and what of it is broken."""

from collections import Counter
from typing import TYPE_CHECKING

from attrs import asdict, frozen

from coldpress.cli.console import out, print_json
from coldpress.cli.option import Json

if TYPE_CHECKING:
    from coldpress.registry import Plugin

_BASES = {
    "modifiers": "Modifier",
    "observers": "Observer",
    "pipelines": "Pipeline",
    "formats": "Format",
    "sources": "Source",
    "statistics": "Statistic",
}


@frozen
class Finding:
    """A plugin and whether it can be used.

    Attributes:
        kind: modifiers, observers, ...
        name: what a recipe says.
        distribution: who offers it.
        version: of the distribution.
        ok: whether a recipe may name it.
        problem: why not; None when it is ok.
    """

    kind: str
    name: str
    distribution: str
    version: str
    ok: bool
    problem: str | None


def plugins(as_json: Json = False) -> None:
    """List what is installed: kind, name, distribution, version, and what is broken and why."""
    findings = look()
    if as_json:
        print_json([asdict(finding) for finding in findings])
        return
    from coldpress.report.table import facts, grid

    columns = ("kind", "name", "distribution", "version", "state")
    rows = [(f.kind, f.name, f.distribution, f.version, "ok" if f.ok else "broken") for f in findings]
    out().print(grid(columns, rows))
    broken = [(finding.name, finding.problem or "") for finding in findings if not finding.ok]
    if broken:
        out().print("\n[bold red]broken[/]", facts(broken), sep="\n")


def look() -> list[Finding]:
    """Every installed plugin, imported to see whether it can be."""
    from coldpress.registry import KINDS, available

    found = []
    for kind in KINDS:
        offers = available(kind)
        counts = Counter(plugin.name for plugin in offers)
        for plugin in offers:
            problem = _conflict(plugin, offers) if counts[plugin.name] > 1 else _defect(plugin)
            found.append(Finding(kind, plugin.name, plugin.distribution, plugin.version, problem is None, problem))
    return found


def _conflict(plugin: "Plugin", offers: "list[Plugin]") -> str:
    owners = [f"{p.distribution} {p.version}" for p in offers if p.name == plugin.name]
    return f"{' and '.join(owners)} both offer this name; uninstall one of them"


def _defect(plugin: "Plugin") -> str | None:
    """Why a plugin cannot be used; None when nothing is wrong with it."""
    import coldpress.plugin
    from coldpress.errors import BrokenPluginError

    try:
        value = plugin.load()
    except BrokenPluginError as error:
        return str(error)
    base = _BASES.get(plugin.kind)
    if base is not None and not (isinstance(value, type) and issubclass(value, getattr(coldpress.plugin, base))):
        return f"{plugin.entry.value} is not a subclass of coldpress.{base}"
    if plugin.kind == "datasets" and not callable(value) and not isinstance(value, coldpress.plugin.HubDataset):
        return f"{plugin.entry.value} is neither a function from the name of a split to rows nor a HubDataset"
    if plugin.kind == "number_formats" and getattr(value, "name", None) != plugin.name:
        return f"{plugin.entry.value} is not a coldpress.schemes.NumberFormat called {plugin.name}"
    return None
