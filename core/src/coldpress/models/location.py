"""What the text that names a model means: a folder, a file, a name that a source knows, or an id on a hub."""

import errno
import logging
import os
import re
import stat
from pathlib import Path

from attrs import frozen

from coldpress import registry
from coldpress.checkpoint.published import quantization_of
from coldpress.checkpoint.reader import read_json
from coldpress.errors import BrokenPluginError, ModelError
from coldpress.installed import extra_called
from coldpress.source import Source
from coldpress.spelling import near

log = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_ADAPTER = "adapter_config.json"
_READ = (".json", ".jinja", ".model", ".txt", ".py", ".safetensors", ".bin", ".gguf")
_WEIGHTS = ("*.safetensors*", "*.bin")


@frozen
class Location:
    """Where a model is, and what reads it.

    Attributes:
        name: what the user wrote.
        path: of the folder or file; None for an id on a hub.
        source: reads it; None for a hub, and for a folder that a format wrote or that is plain.
    """

    name: str
    path: Path | None = None
    source: type[Source] | None = None

    def open(self) -> Source:
        """The container, opened.

        Raises:
            CheckpointError: it is damaged, or something else.
        """
        assert self.source is not None
        assert self.path is not None
        return self.source(self.path)


def locate(name: str) -> Location:
    """Say what `name` means; a folder called like a model that a source knows by name is reached as `./name`.

    Raises:
        ModelError: nothing is there, or nothing that is installed reads it; says what is near, and what to install.
    """
    if name in registry.names("sources"):
        source = _source(name)
        known = source.find(name)
        if known is not None:
            return Location(name, known, source)
    path = Path(name).expanduser()
    _check_name(path)
    if _is_folder(path):
        return _folder(name, path)
    if path.is_file():
        return _file(name, path)
    if _HUB_ID.fullmatch(name) and _suffix(path) not in registry.names("sources"):
        return Location(name)
    raise ModelError(f"{name!r} is not there: neither a folder nor a file of this name exists{neighbours(name)}")


def _check_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ModelError(
            f"{os.fsencode(path)!r} is no name in UTF-8, and the libraries that read models open no other: "
            "rename it, or name a link to it"
        ) from error


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ModelError(f"no model is called {str(path)[:60]!r}...: no file system takes so long a name") from error


def neighbours(name: str) -> str:
    """The end of a message: folders, files and models known by name that look like this one, or what would bring it."""
    path, sources = Path(name).expanduser(), registry.names("sources")
    try:
        beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir() or _suffix(entry) in sources]
    except OSError:
        return f"; the folder {str(path.parent)!r} does not exist either" if path.parent != Path() else ""
    found = [str(path.parent / found) for found in near(path.name, beside, count=3)]
    found += [f"{found} (embedded)" for found in near(name, sources) if _is_model(found)]
    if not found and extra_called(name) is not None:
        return f"; a model of this name comes with {_extra(name)}"
    return f"; did you mean {', '.join(found)}?" if found else ""


def _folder(name: str, path: Path) -> Location:
    _check_files(path)
    configured = (path / "config.json").is_file()
    if configured and (path / _ADAPTER).is_file():
        log.warning("%s: the adapter (PEFT) beside the model is not part of it, and is left out; merge it first", name)
    method = str(quantization_of(path).get("quant_method") or "")
    if method in registry.names("formats"):
        return Location(name, path)  # what a format wrote it reads itself
    named = _source_named(path, method) if configured else None
    if named is not None:
        return Location(name, path, _source(named))
    if configured and any(next(path.glob(pattern), None) for pattern in _WEIGHTS):
        return Location(name, path)
    files = sorted(entry for entry in path.iterdir() if _suffix(entry) in registry.names("sources"))
    if len(files) == 1:
        return Location(name, files[0], _source(_suffix(files[0])))
    if files:
        names = ", ".join(file.name for file in files)
        raise ModelError(f"{name!r} holds {len(files)} files that are models; name one of them: {names}")
    if configured:
        return Location(name, path)
    check_adapter(name, path)
    raise ModelError(f"{name!r} is a folder without config.json, so it holds no model{_hint(path)}")


def _check_files(folder: Path) -> None:
    """Refuse a folder with a file that whoever reads models opens, and whose end may never come.

    Raises:
        ModelError: names the file.
    """
    for entry in sorted(folder.iterdir()):
        try:
            mode = entry.stat().st_mode
        except OSError:  # a link that leads nowhere
            continue
        if entry.suffix in _READ and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ModelError(f"{entry} is no regular file (a pipe, a device or a socket): put the file itself there")


def check_adapter(name: str, folder: Path) -> None:
    """Refuse a folder that holds an adapter (PEFT) alone, without the model that it changes.

    Raises:
        ModelError: says which model that is, and how the two become one.
    """
    settings = folder / _ADAPTER
    if not settings.is_file() or (folder / "config.json").is_file():
        return
    base = read_json(settings).get("base_model_name_or_path")
    raise ModelError(
        f"{name!r} holds an adapter (PEFT) of {base or 'a model that it does not name'}, and no model. Merge the two, "
        f"and pass the folder of what comes out:\n"
        f"  from peft import AutoPeftModelForCausalLM\n"
        f"  AutoPeftModelForCausalLM.from_pretrained({name!r}).merge_and_unload().save_pretrained('merged')"
    )


def _source_named(folder: Path, method: str) -> str | None:
    """Name of the source that a folder asks for: its method, or a file of its own."""
    sources = registry.names("sources")
    if method in sources:
        return method
    marks = {name for name in sources if "." in name}
    return next((entry.name for entry in sorted(folder.iterdir()) if entry.name in marks and entry.is_file()), None)


def _file(name: str, path: Path) -> Location:
    suffix = _suffix(path)
    if suffix in registry.names("sources"):
        return Location(name, path, _source(suffix))
    missing = f"files of this kind are read after {_extra(suffix)}" if extra_called(suffix) else _readable()
    raise ModelError(f"{name!r} is a file that nothing installed reads as a model: {missing}")


def _readable() -> str:
    names = sorted(registry.names("sources"))
    installed = f"installed: {', '.join(names)}" if names else "none is installed"
    return f"a model is a folder with config.json, or what a source reads ({installed})"


def _hint(path: Path) -> str:
    """What may have been meant by a folder that holds no model."""
    inside = [str(entry) for entry in sorted(path.glob("*/"))[:50] if (entry / "config.json").is_file()]
    if inside:
        return f"; {', '.join(inside[:3])} does"
    unread = next((entry for entry in sorted(path.iterdir()) if extra_called(_suffix(entry))), None)
    return f"; {unread.name} is read after {_extra(_suffix(unread))}" if unread is not None else ""


def _source(name: str) -> type[Source]:
    found = registry.find("sources", name)
    if not (isinstance(found, type) and issubclass(found, Source)):
        raise BrokenPluginError(f"the source {name!r} is not a class that extends coldpress.plugin.Source")
    return found


def _is_model(name: str) -> bool:
    """Whether a source knows a model by this name, be it installed or not."""
    try:
        return _source(name).find(name) is not None
    except ModelError:
        return True


def _suffix(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def _extra(name: str) -> str:
    return f"pip install 'coldpress[{extra_called(name)}]'"
