"""The code that a run is made with: every package of plugins that takes part, by version and by content of its files.

    {"acme-rounding": {"version": "1.2", "sha256": "...", "classes": ["AcmeRounding"]}, ...}

Half of a checkpoint by one version of a plugin and half by the next would be neither, so an interrupted run resumes
only with the code that began it.  A package is hashed whole, a class that no package offers by the file that defines
it, or, in a notebook, by the source of its methods; what these import from elsewhere is not looked at.
"""

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from coldpress import registry

MADE_WITH = "made with"
"""What a binding calls it."""

_BOUND_BY_VERSION = {"attr", "attrs", "torch", "transformers", "coldpress"}  # or as a whole, below
_NAMED_NOWHERE = ("statistics", "number_formats")  # a recipe does not say which a modifier requests


def made_with(parts: Iterable[object], *, recipe: str, observers: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Name of each distribution, or file, to its version, a hash of what is in it, and the classes that are used.

    Args:
        parts: modifiers, pipeline, format, attachments, the reader of the weights.
        recipe: as text, in which observers are named.
        observers: that are used where no scheme names one.
    """
    owners, found = registry.owners(), dict[str, dict[str, Any]]()
    for cls in dict.fromkeys(base for part in parts for base in type(part).__mro__):
        package = cls.__module__.partition(".")[0]
        if package in owners:
            _entry(found, package, owners[package])["classes"].append(cls.__name__)
        elif package not in _BOUND_BY_VERSION and package not in sys.stdlib_module_names | {"__main__"}:
            found[f"{cls.__module__}.{cls.__name__}"] = _of_class(cls)
        elif package == "__main__":
            found[f"__main__.{cls.__name__}"] = _of_class(cls)
    for kind in (*_NAMED_NOWHERE, "observers"):
        for plugin in registry.remembered(kind):
            if kind in _NAMED_NOWHERE or plugin.name in observers or plugin.name in recipe:
                package = plugin.entry.module.partition(".")[0]
                _entry(found, package, owners.get(package, package))
    _entry(found, "coldpress", "coldpress")
    return {name: {**entry, "classes": sorted(set(entry["classes"]))} for name, entry in sorted(found.items())}


def changes(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What is another code now than it was then, one line each, with what to do."""
    for name in dict.fromkeys((*old, *new)):
        before, now = old.get(name), new.get(name)
        if before == now:
            continue
        classes = ", ".join(sorted({*(before or {}).get("classes", ()), *(now or {}).get("classes", ())}))
        who = f"{classes} of {name}" if classes and not name.endswith(classes) else name
        if before is None or now is None:
            yield f"{who}: {'has a part now and had' if before is None else 'had a part then and has'} none"
        elif before["version"] != now["version"]:
            yield f"{who}: {before['version']} then, {now['version']} now; finished stages were made by the former"
        elif before["sha256"] != now["sha256"]:
            called = f"{who} {now['version']}".rstrip()
            yield f"{called}: its code was changed; finished stages were made by what it was, so put that back"
        else:
            yield f"{name}: uses {', '.join(before['classes'])} then, {', '.join(now['classes'])} now"


def is_entry(value: Any) -> bool:
    """Whether a value is what `made_with` says of a package."""
    if not isinstance(value, Mapping) or not isinstance(value.get("classes"), list):
        return False
    return all(isinstance(one, str) for one in (value.get("version"), value.get("sha256"), *value["classes"]))


def _entry(found: dict[str, dict[str, Any]], package: str, owner: str) -> dict[str, Any]:
    """The entry of a package, hashed when it is first met."""
    if owner not in found:
        try:
            number = version(owner)
        except PackageNotFoundError:
            number = ""
        found[owner] = {"version": number, "sha256": _of_package(package), "classes": []}
    return found[owner]


def _of_package(package: str) -> str:
    spec = find_spec(package)
    folders = [] if spec is None else [Path(one) for one in spec.submodule_search_locations or ()]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if _is_content(path)]
    if spec is not None and not folders and spec.origin is not None:
        folders, files = [Path(spec.origin).parent], [Path(spec.origin)]
    digest = sha256()
    for path in files:
        digest.update(f"{path.relative_to(next(one for one in folders if path.is_relative_to(one)))};".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _is_content(path: Path) -> bool:
    return "__pycache__" not in path.parts and path.is_file()


def _of_class(cls: type) -> dict[str, Any]:
    """A class that no installed distribution offers: the file that defines it, or what is left of its source."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if file is not None and Path(file).is_file():
        content = Path(file).read_bytes()
    else:
        content = "".join(_source(one) for one in vars(cls).values() if inspect.isfunction(one)).encode()
    return {"version": "", "sha256": sha256(content).hexdigest(), "classes": [cls.__name__]}


def _source(function: Any) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ""
