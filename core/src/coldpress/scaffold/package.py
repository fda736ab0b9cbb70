"""From a kind of plugin and a name to the files of a package.

templates/all/            what every package has: pyproject.toml, README.md
templates/<kind>/         its module, the test of its promises, and what else a package of the kind has

A file's name and its text hold @...@ where the name of the plugin goes; `.template` is cut off.
"""

import ast
import builtins
import keyword
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attrs import frozen

from coldpress import __version__, registry
from coldpress.errors import ArgumentError
from coldpress.spelling import suggest

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
        ArgumentError: there is no such kind, no package can be called so, it is there already, an installed package
            offers a plugin of the name, or a package, a module or a class of the name would hide another one.
    """
    if kind not in SCAFFOLDED:
        raise ArgumentError(f"{kind!r} is no kind of plugin{suggest(kind, SCAFFOLDED)}; one of {', '.join(SCAFFOLDED)}")
    if not _NAME.fullmatch(name):
        raise ArgumentError(f"{name!r} must be small letters and digits, with dashes between words: `top-rows`")
    values = _Naming(kind, name).values()
    filled = [(_filled(path, values), _filled(text, values)) for path, text in _templates(kind)]
    _check_free(f"{kind}s", values, [text for path, text in filled if path.endswith(".py")])
    target = folder / values["@distribution@"]
    if target.exists():
        raise ArgumentError(f"{target} is there already: choose another name, or another folder")
    written = []
    for path, text in filled:
        place = target / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
        written.append(place)
    return written


def _check_free(kind: str, values: Mapping[str, str], sources: Iterable[str]) -> None:
    """Refuse names that something else has.

    Args:
        kind: as the registry has it.
        values: of the placeholders.
        sources: modules and tests of the package, filled.

    Raises:
        ArgumentError: says what has the name.
    """
    entry, distribution, module, name = (values[f"@{key}@"] for key in ("entry", "distribution", "module", "class"))
    alike = {_letters(one): one for one in registry.names(kind)}
    has = None
    if _letters(entry) in alike:
        has = f"an installed package offers the {kind[:-1]} {alike[_letters(entry)]!r} already"
    elif distribution in _distributions() or find_spec(module) is not None:
        has = f"there is a package {distribution} already"
    elif keyword.iskeyword(name) or hasattr(builtins, name):
        has = f"Python has a name {name!r} of its own"
    elif any(name in _imported(text, but_from=module) for text in sources):
        has = f"the class {name!r} would hide another one that its module imports"
    if has is not None:
        raise ArgumentError(f"{has}: choose another name")


def _letters(name: str) -> str:
    """A name without what people mix up: case, dashes and underscores."""
    return re.sub(r"[-_]", "", name).casefold()


def _distributions() -> set[str]:
    """Names of the packages that coldpress has extras for, installed or not."""
    try:
        lines = requires("coldpress") or []
    except PackageNotFoundError:
        return set()
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines}


def _imported(text: str, *, but_from: str) -> set[str]:
    """The names that a module imports, but for those from a package."""
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    others = [node for node in found if not (getattr(node, "module", None) or "").startswith(but_from)]
    return {alias.asname or alias.name for node in others for alias in node.names}


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
