"""From a kind of plugin and a name to the files of a package.

templates/all/            what every package has: pyproject.toml, README.md
templates/<kind>/         its module, the test of its promises, and what else a package of the kind has

A file's name and its text hold @...@ where the name of the plugin goes; `.template` is cut off.
"""

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from attrs import frozen

from coldpress import __version__, registry
from coldpress.errors import ArgumentError, suggest

SCAFFOLDED = ("modifier", "observer", "pipeline", "format", "source", "dataset")

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SUFFIX = ".template"
_CLASSES = {"modifier": "Modifier", "format": "Format", "source": "Source"}  # what names of classes end with


@frozen
class _Naming:
    """What the parts of a package are called.

    Attributes:
        kind: of plugin.
        name: as the user gave it, such as `top-rows`.
    """

    kind: str
    name: str

    def values(self) -> dict[str, str]:
        """Placeholder to text."""
        words = self.name.split("-")
        camel = "".join(word.capitalize() for word in words) + _CLASSES.get(self.kind, "")
        snake = "_".join(words)
        entry = {"modifier": camel, "observer": snake, "pipeline": snake}.get(self.kind, self.name)
        major, minor, *_ = __version__.split(".")
        return {
            "@name@": self.name,
            "@distribution@": f"coldpress-{self.name}",
            "@module@": f"coldpress_{snake}",
            "@class@": camel,
            "@target@": "load" if self.kind == "dataset" else camel,
            "@entry@": entry,
            "@kind@": self.kind,
            "@group@": f"coldpress.{self.kind}s",
            "@pin@": f">={major}.{minor},<{major}.{int(minor) + 1}",
        }


def new_package(kind: str, name: str, folder: Path) -> list[Path]:
    """Write the package of a new plugin.

    Args:
        kind: one of `SCAFFOLDED`.
        name: in small letters, digits and dashes; classes, modules and the distribution are called after it.
        folder: where the package's own folder is made.

    Returns:
        The files, in the order in which they are worth reading.

    Raises:
        ArgumentError: there is no such kind, no package can be called so, it is there already, or an installed package
            offers a plugin of the name.
    """
    if kind not in SCAFFOLDED:
        raise ArgumentError(f"{kind!r} is no kind of plugin{suggest(kind, SCAFFOLDED)}; one of {', '.join(SCAFFOLDED)}")
    if not _NAME.fullmatch(name):
        raise ArgumentError(f"{name!r} must be small letters and digits, with dashes between words: `top-rows`")
    values = _Naming(kind, name).values()
    if values["@entry@"] in registry.names(f"{kind}s"):
        raise ArgumentError(
            f"an installed package offers the {kind} {values['@entry@']!r} already: choose another name"
        )
    target = folder / values["@distribution@"]
    if target.exists():
        raise ArgumentError(f"{target} is there already: choose another name, or another folder")
    written = []
    for path, text in _templates(kind):
        place = target / _filled(path, values)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(_filled(text, values), encoding="utf-8")
        written.append(place)
    return written


def _templates(kind: str) -> Iterator[tuple[str, str]]:
    """Path in the package and text, of each template."""
    root: Any = files("coldpress.scaffold") / "templates"
    for part in ("all", kind):
        yield from _inside(root / part, "")


def _inside(folder: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for item in sorted(folder.iterdir(), key=lambda one: one.name):
        if item.is_dir():
            yield from _inside(item, f"{prefix}{item.name}/")
        elif item.name.endswith(_SUFFIX):
            yield prefix + item.name.removesuffix(_SUFFIX), item.read_text(encoding="utf-8")


def _filled(text: str, values: dict[str, str]) -> str:
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)
    return text
