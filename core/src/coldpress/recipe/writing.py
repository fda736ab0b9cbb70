"""Writing: a `Recipe` to text that replays to the same recipe."""

import io
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import attrs
from attrs import NOTHING
from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, SingleQuotedScalarString

from coldpress.errors import RecipeError, UnknownPluginError
from coldpress.modifier import Modifier
from coldpress.recipe.converter import structure
from coldpress.recipe.grammar import STAGE
from coldpress.recipe.mistake import Mistakes
from coldpress.recipe.placeholder import escape
from coldpress.recipe.problem import Path, show
from coldpress.recipe.reading import read_recipe
from coldpress.recipe.recipe import Recipe
from coldpress.recipe.structure import accepted_types

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")


def write_recipe(recipe: Recipe) -> str:
    """YAML text in our own grammar; settings that are at their defaults are left out.

    A modifier is written under the name of its class, which is what a recipe calls it.

    Raises:
        RecipeError: a setting holds something that text cannot, so the text would not replay.
    """
    document = _document(recipe)
    yaml = YAML(typ="rt")
    yaml.Representer = _Representer
    yaml.default_flow_style = None  # innermost lists and mappings on one line
    yaml.width = 2**16  # a folded line is hard to compare
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = io.StringIO()
    try:
        yaml.dump(_escaped(document), text)
    except Exception as error:  # the library raises many types
        raise RecipeError([f"the recipe cannot be written: {error}"]) from error
    _check_replay(text.getvalue(), recipe, document)
    return text.getvalue()


class _Representer(RoundTripRepresenter):
    """Writes `null` where the library writes nothing."""


_Representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))


def settings_of(instance: Any, path: Path = ()) -> dict[str, Any]:
    """The settings of an attrs object that are not at their defaults, as plain data.

    Raises:
        RecipeError: one cannot be written.
    """
    settings, types = {}, accepted_types(type(instance))
    for a in attrs.fields(type(instance)):
        if a.init:
            value = _plain(_as_read(getattr(instance, a.name), types[a.name]), (*path, a.alias))
            if repr(value) != _default(a):  # repr tells 1 from True and 0.0 from -0.0
                settings[a.alias] = value
    return settings


def _as_read(value: Any, wanted: Any) -> Any:
    """A setting as a recipe would read it: 1 where a number is meant is 1.0."""
    try:
        return structure(value, wanted)
    except Mistakes:
        return value  # text cannot express it, or not as it is


def _document(recipe: Recipe) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for kind, choice in (("pipeline", recipe.pipeline), ("format", recipe.format)):
        if choice is not None:
            settings = _plain(choice.settings, (kind, choice.name))
            document[kind] = {choice.name: settings} if settings else choice.name
    steps = zip(recipe.modifiers, recipe.stages, strict=True)
    document["modifiers"] = [_step(modifier, stage, i) for i, (modifier, stage) in enumerate(steps)]
    return document


def _step(modifier: Modifier, stage: str | None, index: int) -> Any:
    name = type(modifier).__name__
    settings = settings_of(modifier, ("modifiers", index, name))
    if stage is not None:
        return {name: settings, STAGE: stage}
    return {name: settings} if settings else name


def _plain(value: Any, path: Path) -> Any:
    if value is None or (isinstance(value, bool | int | float) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return _plain(value.value, path)
    if isinstance(value, str | PurePath):
        return value.as_posix() if isinstance(value, PurePath) else str(value)
    if callable(getattr(value, "to_dict", None)) and callable(getattr(type(value), "from_dict", None)):
        return _plain(value.to_dict(), path)
    if attrs.has(type(value)):
        return settings_of(value, path)
    if isinstance(value, Mapping):
        return {_plain(key, path): _plain(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_plain(item, path) for item in value), key=repr)
    if isinstance(value, list | tuple):
        return [_plain(item, (*path, i)) for i, item in enumerate(value)]
    raise RecipeError([f"{show(path)}: {type(value).__name__} cannot be written in a recipe"])


def _default(a: "attrs.Attribute[Any]") -> str | None:
    """How the plain default of a field reads; None when it depends on other fields or there is none."""
    value: Any = a.default
    if isinstance(value, attrs.Factory):  # type: ignore[arg-type]
        if value.takes_self:
            return None
        value = value.factory()
    if value is NOTHING or isinstance(a.converter, attrs.Converter):
        return None
    try:
        return repr(_plain(a.converter(value) if a.converter else value, ()))
    except RecipeError:
        return None


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return _quoted(escape(value))
    if isinstance(value, dict):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list) else value


def _quoted(text: str) -> str:
    """Text in a style that reads back as it is; the library's own choice loses some line breaks, and `?` in a list."""
    if _WORD.fullmatch(text):
        return text
    style: type[str] = SingleQuotedScalarString if text.isprintable() else DoubleQuotedScalarString
    return style(text)


def _check_replay(text: str, recipe: Recipe, document: dict[str, Any]) -> None:
    classes = {type(modifier).__name__: type(modifier) for modifier in recipe.modifiers}

    def find(kind: str, name: str) -> type[Modifier]:
        if name not in classes:
            raise UnknownPluginError(f"no modifier is called {name!r}")
        return classes[name]

    again = _document(read_recipe(text, find=find))
    types = [classes[type(modifier).__name__] is type(modifier) for modifier in recipe.modifiers]
    if repr(again) == repr(document) and all(types):
        return
    wrong = [name for name in document if repr(again.get(name)) != repr(document[name])] or ["modifiers"]
    raise RecipeError([f"{name}: what is written would not replay to the same recipe" for name in wrong])
