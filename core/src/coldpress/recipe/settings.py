"""The settings of a plugin's class: what they are called, hold and mean, as its docstring has it."""

import inspect
import re
from types import UnionType
from typing import Any, Union, get_args, get_origin

from attrs import NOTHING, Factory, fields, frozen, has

_SECTION = re.compile(r"^\s*Attributes:\s*$(?P<body>(?:\n\s*\S.*|\n\s*$)*)", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(?P<name>\w+): (?P<meaning>.*(?:\n {5,}.*)*)", re.MULTILINE)


@frozen
class Setting:
    """One setting of a plugin.

    Attributes:
        name: in recipes.
        type: what it holds, as it is annotated.
        default: as Python writes it; None where it must be given.
        meaning: of the docstring; empty where it has none.
    """

    name: str
    type: str
    default: str | None
    meaning: str


def settings_of(cls: type) -> list[Setting]:
    """The settings of a class, in the order of its definition, inherited ones first; none where it is not attrs'."""
    if not has(cls):
        return []
    meanings = documented(cls)
    return [
        Setting(field.name, _type(field.type), _default(field.default), meanings.get(field.name, ""))
        for field in fields(cls)
        if field.init
    ]


def documented(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say under `Attributes:`; the nearest class wins."""
    found: dict[str, str] = {}
    for parent in reversed(cls.__mro__):
        section = _SECTION.search(inspect.cleandoc(parent.__doc__ or ""))
        if section:
            entries = _ENTRY.finditer(section["body"])
            found |= {entry["name"]: " ".join(entry["meaning"].split()) for entry in entries}
    return found


def summary(cls: type) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())


def _type(annotation: Any) -> str:
    if get_origin(annotation) in (Union, UnionType):  # which print differently
        return " | ".join(map(_type, get_args(annotation)))
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", text).replace("NoneType", "None")


def _default(default: Any) -> str | None:
    if default is NOTHING:
        return None
    if isinstance(default, Factory):  # type: ignore[arg-type]  # a class, which attrs types as a function
        return "found" if default.takes_self else repr(default.factory())
    return repr(default)
