"""What the text that names a model means: an embedded name, a folder, a GGUF file, or an id on a hub."""

import re
from pathlib import Path
from typing import Literal

from attrs import frozen

from coldpress.errors import ModelError, near
from coldpress.models.embedded import EMBEDDED, embedded_file

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@frozen
class Source:
    """Where a model is.

    Attributes:
        kind: folder, gguf or hub.
        name: what the user wrote.
        path: of the folder or file; None for a hub.
    """

    kind: Literal["folder", "gguf", "hub"]
    name: str
    path: Path | None = None


def find_source(name: str) -> Source:
    """Say what `name` means; a folder called like an embedded model is reached as `./name`.

    Raises:
        ModelError: nothing is there; says what was looked for and which folders have a name that is near.
    """
    if name in EMBEDDED:
        return Source("gguf", name, embedded_file(name))
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(name, path)
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return Source("gguf", name, path)
        raise ModelError(
            f"{name!r} is a file, and not a .gguf file: a model is a folder with config.json, or a .gguf file"
        )
    if _HUB_ID.fullmatch(name) and not name.endswith(".gguf"):
        return Source("hub", name)
    raise ModelError(f"{name!r} is not there: neither a folder nor a file of this name exists{neighbours(name)}")


def neighbours(name: str) -> str:
    """The end of a message: folders, files and embedded models whose name is near."""
    path = Path(name).expanduser()
    try:
        beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir() or entry.suffix == ".gguf"]
    except OSError:
        return f"; the folder {str(path.parent)!r} does not exist either" if path.parent != Path() else ""
    found = [str(path.parent / found) for found in near(path.name, beside, count=3)]
    found += [f"{found} (embedded)" for found in near(name, EMBEDDED)]
    return f"; did you mean {', '.join(found)}?" if found else ""


def _folder(name: str, path: Path) -> Source:
    if (path / "config.json").is_file():
        return Source("folder", name, path)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return Source("gguf", name, files[0])
    if files:
        raise ModelError(
            f"{name!r} holds {len(files)} GGUF files; name one of them: {', '.join(f.name for f in files)}"
        )
    inside = [str(entry) for entry in sorted(path.glob("*/"))[:50] if (entry / "config.json").is_file()]
    hint = f"; {', '.join(inside[:3])} does" if inside else ""
    raise ModelError(f"{name!r} is a folder without config.json, so it holds no model{hint}")
