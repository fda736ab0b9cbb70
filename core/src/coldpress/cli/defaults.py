"""`coldpress defaults`: values of options that a file or the environment sets, for every call.

An option of the command line comes first, then COLDPRESS_<COMMAND>_<OPTION>, then the file.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from coldpress.cli.console import out, print_json
from coldpress.cli.option import Json
from coldpress.errors import ArgumentError
from coldpress.spelling import suggest

_PREFIX = "COLDPRESS"
_FILE = "COLDPRESS_DEFAULTS"


def defaults(context: typer.Context, as_json: Json = False) -> None:
    """Show the options that a file of defaults or the environment sets, and where.

    The file is YAML, one section a command: `compress: {dtype: bfloat16}`.
    """
    assert context.parent is not None
    commands = commands_of(context.parent)
    rows = [*_of_file(commands), *_of_environment(commands)]  # of two for one option, the second holds
    file = defaults_file()
    if as_json:
        print_json("defaults", {"file": str(file), "exists": file.exists(), "options": rows})
        return
    from rich.text import Text

    from coldpress.report.table import grid

    keys = ("command", "option", "value", "from")
    if rows:
        out().print(grid(keys, [tuple(str(row[key]) for key in keys) for row in rows]))
    state = f"{file} {'is read' if file.exists() else 'is not there'}; {_FILE} names another file"
    out().print(Text(state, style="dim"))


def defaults_file() -> Path:
    """Where the file of defaults is looked for."""
    named = os.environ.get(_FILE)
    if named:
        return Path(named).expanduser()
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "coldpress" / "defaults.yaml"


def commands_of(context: Any) -> dict[str, Any]:
    """The commands of the program, by name."""
    return dict(context.command.commands)


def default_map(commands: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the file and the environment set, as click takes it: command, name of the parameter, value.

    Raises:
        ArgumentError: it cannot be read, or names a command or an option that there is not.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in (*_of_file(commands), *_of_environment(commands)):
        found.setdefault(row["command"], {})[row["parameter"]] = row["value"]
    return found


def _of_file(commands: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each option that the file sets."""
    file = defaults_file()
    if not os.environ.get(_FILE) and not file.exists():
        return
    for name, section in _mapping(_read(file), file, "a section a command").items():
        if name not in commands:
            raise ArgumentError(f"{file}: there is no command {name!r}{suggest(str(name), commands)}")
        options = _options(commands[name])
        for key, value in _mapping(section, file, f"options of {name}").items():
            option = str(key).replace("_", "-")
            if option not in options:
                raise ArgumentError(f"{file}: {name} has no option --{option}{suggest(option, options)}")
            several = getattr(options[option], "multiple", False) and not isinstance(value, list)
            row = {"command": name, "option": f"--{option}", "value": [value] if several else value}
            yield row | {"from": str(file), "parameter": options[option].name}


def _of_environment(commands: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each option that a variable sets."""
    for name, command in commands.items():
        for option, parameter in _options(command).items():
            variable = f"{_PREFIX}_{name}_{parameter.name}".upper()
            if variable in os.environ:
                given: Any = os.environ[variable]
                several = getattr(parameter, "multiple", False)
                row = {"command": name, "option": f"--{option}", "value": given.split() if several else given}
                yield row | {"from": variable, "parameter": parameter.name}


def _options(command: Any) -> dict[str, Any]:
    """Name of each long option, without its dashes, to the parameter."""
    return {
        flag[2:]: parameter
        for parameter in command.params
        for flag in parameter.opts
        if flag.startswith("--") and flag not in ("--help", "--debug")
    }


def _read(file: Path) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe").load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ArgumentError(f"the file of defaults, {file}, cannot be read: {error}") from error


def _mapping(value: Any, file: Path, what: str) -> Mapping[str, Any]:
    """A part of the file; nothing where it is empty.

    Raises:
        ArgumentError: it is of another form.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ArgumentError(f"{file}: expected {what}, `name: value` in YAML, found {value!r}")
    return value
