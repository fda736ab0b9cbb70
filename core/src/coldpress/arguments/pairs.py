"""Names with values: a dict, or the `["name=value", ...]` that a terminal gives."""

import os
from collections.abc import Mapping
from typing import Any

from coldpress.errors import ArgumentError


def renamed(given: Any) -> Any:
    """Old name to new name; what is of neither form stays, for the validator to refuse.

    Raises:
        ArgumentError: two columns would have one name.
    """
    found = _pairs(given, "column_map", "OLD=NEW")
    if isinstance(found, dict):
        if not all(isinstance(one, str) and one for pair in found.items() for one in pair):
            raise ArgumentError(f"column_map goes from the name of a column to another name, got {given!r}")
        if len(set(found.values())) < len(found):
            raise ArgumentError(f"column_map gives two columns one name: {given!r}")
    return found


def of_template(given: Any) -> Any:
    """Of a chat template: name to value, which is read as YAML where it is text of `name=value`; other forms stay.

    Raises:
        ArgumentError: a value cannot be read.
    """
    return _values(given, "chat_template_kwargs")


def of_loading(given: Any) -> Any:
    """The same of `datasets.load_dataset`."""
    return _values(given, "raw_kwargs")


def yaml_value(text: str, what: str) -> Any:
    """A value as a recipe has it: `false`, `3`, `[a, b]`, text.

    Args:
        text: of the value.
        what: it is for, for the message.

    Raises:
        ArgumentError: it cannot be read.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        raise ArgumentError(f"{what}: {text!r} cannot be read as YAML") from error


def path_or_text(given: Any) -> Any:
    """A path as text; anything else as it is."""
    return os.fspath(given) if isinstance(given, os.PathLike) else given


def _values(given: Any, argument: str) -> Any:
    found = _pairs(given, argument, "NAME=VALUE")
    if not isinstance(given, (list, tuple)) or not isinstance(found, dict):
        return found
    return {name: yaml_value(text, f"{argument} {name}") for name, text in found.items()}


def _pairs(given: Any, argument: str, form: str) -> Any:
    if isinstance(given, Mapping):
        return given if isinstance(given, dict) else dict(given)
    if not isinstance(given, (list, tuple)) or not all(isinstance(one, str) for one in given):
        return given
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ArgumentError(f"{argument} takes {form}, got {text!r}")
        if name in found:
            raise ArgumentError(f"{argument} has {name!r} twice")
        found[name] = value
    return found
