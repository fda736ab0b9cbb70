"""`coldpress plugins`: what is installed, and what of it is broken."""

from collections import Counter
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, requires
from typing import TYPE_CHECKING, Annotated, Any

import typer
from attrs import asdict, frozen

from coldpress.cli.console import out, print_json
from coldpress.cli.described import show
from coldpress.cli.option import Json

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

    from coldpress.registry import Plugin

_BASES = {
    "modifiers": "Modifier",
    "observers": "Observer",
    "pipelines": "Pipeline",
    "formats": "Format",
    "sources": "Source",
    "statistics": "Statistic",
    "attachments": "Attachment",
}
# Methods that a base class has only to say that they are missing; one of several where they stand together.
_MUST_HAVE = {
    "observers": (("update",), ("merge",), ("range",)),
    "pipelines": (("stages",),),
    "statistics": (("update", "update_with_original", "update_with_gradient"), ("merge",)),
    "attachments": (("inputs", "weight", "outputs", "attention"),),
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


def plugins(
    name: Annotated[
        str | None,
        typer.Argument(help="Show the settings of this plugin: types, defaults, meaning.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """List what is installed: kind, name, distribution, version, and what is broken and why; or the settings of one."""
    if name is not None:
        show(name, as_json=as_json)
        return
    findings = look()
    if as_json:
        print_json("plugins", {"plugins": [asdict(finding) for finding in findings]})
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
    from coldpress.registry import KINDS, available, strays

    found = [Finding(one.kind, one.name, one.distribution, one.version, False, _stray(one)) for one in strays()]
    for kind in KINDS:
        offers = available(kind)
        counts = Counter(plugin.name for plugin in offers)
        for plugin in offers:
            problem = _conflict(plugin, offers) if counts[plugin.name] > 1 else _misfit(plugin) or _defect(plugin)
            found.append(Finding(kind, plugin.name, plugin.distribution, plugin.version, problem is None, problem))
    return found


def _conflict(plugin: "Plugin", offers: "list[Plugin]") -> str:
    owners = [f"{p.distribution} {p.version}" for p in offers if p.name == plugin.name]
    return f"{' and '.join(owners)} both offer this name; uninstall one of them"


def _misfit(plugin: "Plugin") -> str | None:
    """Why the version of a plugin's package does not fit the installed coldpress; None where it does.

    Each side may say it: the package which coldpress it is for, and an extra of coldpress which package it is for.
    """
    from coldpress import __version__

    theirs, ours = f"{plugin.distribution} {plugin.version}", f"coldpress {__version__}"
    wanted = _requirement(plugin.distribution, "coldpress")
    if wanted is not None and not wanted.contains(__version__, prereleases=True):
        return f"{theirs} is for coldpress{wanted}, and {ours} is installed: upgrade the older of the two"
    wanted = _requirement("coldpress", plugin.distribution)
    if wanted is not None and not wanted.contains(plugin.version, prereleases=True):
        return f"{ours} is for {plugin.distribution}{wanted}, not for {plugin.version}: upgrade the older of the two"
    return None


@lru_cache
def _requirement(distribution: str, other: str) -> "SpecifierSet | None":
    """Which versions of another distribution one requires, by its metadata; None where it says nothing."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    try:
        lines = requires(distribution) or []
    except (PackageNotFoundError, ValueError):  # no name
        return None
    for line in lines:
        try:
            found = Requirement(line)
        except InvalidRequirement:
            continue
        if canonicalize_name(found.name) == canonicalize_name(other) and str(found.specifier):
            return found.specifier
    return None


def _stray(plugin: "Plugin") -> str:
    from coldpress.registry import KINDS, near_group

    meant = near_group(plugin.kind)
    groups = f"write {meant!r}" if meant else f"there are {', '.join(f'coldpress.{kind}' for kind in KINDS)}"
    return f"there is no group {plugin.kind!r}, so nothing finds {plugin.entry.value}: {groups}"


def _defect(plugin: "Plugin") -> str | None:
    """Why a plugin cannot be used; None when nothing is wrong with it."""
    import coldpress.plugin
    from coldpress.errors import BrokenPluginError

    try:
        value = plugin.load()
    except BrokenPluginError as error:
        return str(error)
    base = _BASES.get(plugin.kind)
    if base is not None:
        kind = getattr(coldpress.plugin, base)
        if not (isinstance(value, type) and issubclass(value, kind)):
            return f"{plugin.entry.value} is not a subclass of coldpress.{base}"
        problems = _form(plugin, value, kind)
        return f"{plugin.entry.value}: {'; '.join(problems)}" if problems else None
    if plugin.kind == "datasets" and not callable(value) and not isinstance(value, coldpress.plugin.HubDataset):
        return f"{plugin.entry.value} is neither a function from the name of a split to rows nor a HubDataset"
    if plugin.kind == "recipes" and not isinstance(value, coldpress.plugin.ReadyRecipe):
        return f"{plugin.entry.value} is not a coldpress.plugin.ReadyRecipe"
    if plugin.kind == "number_formats" and getattr(value, "name", None) != plugin.name:
        return f"{plugin.entry.value} is not a coldpress.schemes.NumberFormat called {plugin.name}"
    if plugin.kind == "presets" and not isinstance(value, coldpress.Scheme):
        return f"{plugin.entry.value} is not a coldpress.Scheme"
    return None


def _form(plugin: "Plugin", cls: type[Any], base: type) -> list[str]:
    """What is wrong with the form of a class, and what to do."""
    from attrs import has

    from coldpress.recipe.form import form_problems

    if plugin.kind == "modifiers":
        return list(form_problems(cls, plugin.name))
    abstract: frozenset[str] = getattr(cls, "__abstractmethods__", frozenset())
    problems = [f"it must implement {name}" for name in sorted(abstract)]
    for methods in _MUST_HAVE.get(plugin.kind, ()):
        if all(getattr(cls, name, None) is getattr(base, name, None) for name in methods):
            problems.append(f"it must implement {' or '.join(name for name in methods if hasattr(cls, name))}")
    problems += [
        f"it supports {word}, and has no method of this name"
        for word in sorted(getattr(cls, "supports", ()))
        if plugin.kind == "statistics" and getattr(cls, word, None) in (None, getattr(base, word, None))
    ]
    if plugin.kind == "attachments" and cls.kind != plugin.name:
        problems.append(f"its kind is {cls.kind!r} and its entry point {plugin.name!r}: give both one name")
    if plugin.kind != "sources" and not has(cls):
        problems.append("decorate it with @frozen(kw_only=True), else it has no settings")
    return problems
