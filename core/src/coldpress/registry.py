"""Kind and name to plugin, lazily: nothing is imported until a recipe names it.

A plugin is one line of entry points in its distribution's metadata:

    [project.entry-points."coldpress.modifiers"]
    WandaModifier = "coldpress_wanda:WandaModifier"

The name on the left is what a recipe says.
"""

import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import EntryPoint, distributions, entry_points
from typing import Any

from attrs import frozen

from coldpress.errors import BrokenPluginError, PluginConflictError, UnknownPluginError
from coldpress.spelling import suggest

KINDS = (
    "modifiers",
    "observers",
    "pipelines",
    "formats",
    "sources",
    "number_formats",
    "presets",
    "datasets",
    "statistics",
    "attachments",
    "recipes",
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*(/[A-Za-z0-9][A-Za-z0-9_.\-]*)?")


@frozen
class Plugin:
    """One entry point, not yet imported.

    Attributes:
        kind: one of `KINDS`.
        name: what a recipe says.
        distribution: who offers it; empty when the metadata do not say.
        version: of the distribution.
        entry: where to find it, `module:attribute`.
    """

    kind: str
    name: str
    distribution: str
    version: str
    entry: EntryPoint

    def load(self) -> Any:
        """Import the plugin.

        Raises:
            BrokenPluginError: importing fails; the plugin's own error is the cause.
        """
        try:
            return self.entry.load()
        except Exception as error:
            raise BrokenPluginError(
                f"the {self.kind[:-1]} {self.name!r} of {self.distribution} {self.version} cannot be imported "
                f"from {self.entry.value}: {type(error).__name__}: {error}"
            ) from error


def available(kind: str) -> list[Plugin]:
    """Every installed plugin of a kind, by name; nothing is imported."""
    _check_kind(kind)
    found = {}
    for entry in entry_points(group=f"coldpress.{kind}"):
        owner = entry.dist.name if entry.dist else ""
        # A distribution may be seen twice (an editable install beside its metadata): the same line is one plugin.
        found[entry.name, owner, entry.value] = Plugin(
            kind, entry.name, owner, entry.dist.version if entry.dist else "", entry
        )
    return sorted(found.values(), key=lambda plugin: (plugin.name.lower(), plugin.distribution))


def names(kind: str) -> frozenset[str]:
    """What the plugins of a kind are called; remembered, so one that was installed since the first call may lack."""
    return frozenset(plugin.name for plugin in remembered(kind))


def remembered(kind: str) -> tuple[Plugin, ...]:
    """As `available`, but read once; one that was installed since the first call may lack."""
    _check_kind(kind)
    return _remembered(kind, entry_points, tuple(sys.path))


def owners() -> dict[str, str]:
    """Name of each package that holds plugins to the distribution that offers them."""
    return {
        plugin.entry.module.partition(".")[0]: plugin.distribution
        for kind in KINDS
        for plugin in remembered(kind)
        if plugin.distribution and plugin.distribution != "coldpress"
    }


def find(kind: str, name: str) -> Any:
    """The plugin of this kind and name, imported.

    Raises:
        UnknownPluginError: no installed plugin has the name; near names are suggested.
        PluginConflictError: two distributions offer it; both are named.
        BrokenPluginError: it is installed and cannot be imported.
    """
    _check_kind(kind)
    if not _NAME.fullmatch(name):
        raise UnknownPluginError(
            f"{name!r} is not a plugin name: a {kind[:-1]} is named by its entry point, never by a path or an import"
        )
    offers = [plugin for plugin in remembered(kind) if plugin.name == name]
    if not offers:
        _remembered.cache_clear()  # it may have been installed since
        offers = [plugin for plugin in available(kind) if plugin.name == name]
    if not offers:
        names = [plugin.name for plugin in available(kind)]
        installed = f" (installed: {', '.join(names)})" if names else " (none is installed)"
        raise UnknownPluginError(f"no {kind[:-1]} is called {name!r}{suggest(name, names)}{installed}{_strayed(name)}")
    if len(offers) > 1:
        owners = " and ".join(f"{plugin.distribution} {plugin.version}" for plugin in offers)
        raise PluginConflictError(f"{owners} both offer the {kind[:-1]} {name!r}; uninstall one of them")
    return offers[0].load()


def strays() -> list[Plugin]:
    """Entry points in groups that look like ours and are none, as `coldpress.modifier`, so that nothing finds them."""
    groups = [f"coldpress.{kind}" for kind in KINDS]
    return [
        Plugin(entry.group, entry.name, distribution.name, distribution.version, entry)
        for distribution in distributions()
        for entry in distribution.entry_points
        if entry.group not in groups and (entry.group.startswith("coldpress") or near_group(entry.group))
    ]


def near_group(group: str) -> str | None:
    """The group that is meant by another one; None where none is like it."""
    found = get_close_matches(group.lower().replace("_", "."), [f"coldpress.{kind}" for kind in KINDS], n=1, cutoff=0.8)
    return found[0] if found else None


def owner_of(module: str) -> str | None:
    """Name and version of the distribution whose plugins are in the package of a module; None where none are."""
    package = module.partition(".")[0]
    for kind in KINDS:
        for plugin in available(kind):
            if plugin.distribution and plugin.entry.value.partition(":")[0].partition(".")[0] == package:
                return f"{plugin.distribution} {plugin.version}"
    return None


def _strayed(name: str) -> str:
    """The end of a message: who offers the name in a group that is none."""
    found = next((one for one in strays() if one.name == name), None)
    if found is None:
        return ""
    meant = near_group(found.kind) or "one of ours"
    return (
        f"; {found.distribution} {found.version} offers it in the group {found.kind!r}, which is none: its metadata "
        f"must say {meant!r}"
    )


@lru_cache
def _remembered(kind: str, source: Callable[..., Iterable[EntryPoint]], path: tuple[str, ...]) -> tuple[Plugin, ...]:
    """What `available` says, which reads the metadata of every distribution and takes as long as a small model's run.

    Args:
        kind: of plugin.
        source: where entry points are read from; another one is asked anew.
        path: where distributions are looked for.
    """
    return tuple(available(kind))


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is not a kind of plugin{suggest(kind, KINDS)}")
