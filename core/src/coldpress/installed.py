"""Plugins of one kind as names of a module: `from coldpress.modifiers import GPTQModifier`."""

import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any

from coldpress import registry
from coldpress.errors import UnknownPluginError
from coldpress.spelling import suggest


def installed_names(module: str, kind: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a module that offers what is installed of a kind, whoever published it.

    A plugin is found by the name that recipes use, or by that of its class.

    Args:
        module: name of the module.
        kind: of plugin, one of `registry.KINDS`.
    """

    def load(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        offered = _names(kind)
        try:
            return registry.find(kind, offered.get(name, name))
        except UnknownPluginError as error:
            raise AttributeError(
                f"module {module!r} has no {name!r}{suggest(name, list(offered))}: {_remedy(kind, name)}"
            ) from error

    def listed() -> list[str]:
        return sorted(_names(kind))

    return load, listed


def _names(kind: str) -> dict[str, str]:
    """What a plugin may be called in Python to its name in recipes; the latter wins."""
    found = registry.available(kind)
    classes = {plugin.entry.attr.rpartition(".")[2]: plugin.name for plugin in reversed(found) if plugin.entry.attr}
    return {name: own for name, own in {**classes, **{p.name: p.name for p in found}}.items() if name.isidentifier()}


def extra_called(name: str) -> str | None:
    """The extra of coldpress that is called so, whatever its dashes and capitals; None where there is none."""
    return _extras().get(_plain(name))


def container_suffixes() -> frozenset[str]:
    """Suffixes, without the dot, that a model in another container may have: what sources are called, and extras.

    So such a file is known beside the weights of a model, also where the source that would read it is not installed.
    """
    return registry.names("sources") | frozenset(_extras().values())


def _remedy(kind: str, name: str) -> str:
    """The extra of coldpress that is called as the plugin is, or that there is none."""
    for plain, extra in sorted(_extras().items(), key=lambda pair: len(pair[0]), reverse=True):
        if plain in _plain(name):
            return f"pip install 'coldpress[{extra}]'"
    return f"no installed distribution offers a {kind[:-1]} of this name"


@cache
def _extras() -> dict[str, str]:
    """The extras of coldpress, by their names without dashes and capitals."""
    try:
        extras = metadata("coldpress").get_all("Provides-Extra") or []
    except PackageNotFoundError:
        extras = []
    return {_plain(extra): extra for extra in extras}


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())
