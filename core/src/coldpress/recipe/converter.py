"""The cattrs converter of recipes: what each annotation accepts."""

import re
from collections import abc
from collections.abc import Callable
from enum import Enum
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import attrs
from attrs import evolve
from cattrs import Converter, StructureHandlerNotFoundError

from coldpress.recipe.mistake import USER_ERRORS, Collected, Mistake, Mistakes, flat
from coldpress.recipe.problem import UNKNOWN, kind, quote
from coldpress.recipe.problem import Path as Keys
from coldpress.spelling import suggest

Hook = Callable[[Any, Any], Any]

_LISTS: dict[Any, Callable[[list[Any]], Any]] = {
    list: list, abc.Sequence: list, abc.MutableSequence: list, abc.Iterable: list, abc.Collection: list,
    tuple: tuple, set: set, frozenset: frozenset, abc.Set: frozenset,
}  # fmt: skip
_MAPPINGS = (dict, abc.Mapping, abc.MutableMapping)
_WORDS = {str: "text", int: "an integer", float: "a number", bool: "true or false", NoneType: "null", None: "null"}


def structure(value: Any, wanted: Any) -> Any:
    """A value of any type that a field may have.

    Raises:
        Mistakes: the value does not fit.
    """
    if value is UNKNOWN:
        raise Mistakes
    try:
        return CONVERTER.structure(value, wanted)
    except StructureHandlerNotFoundError as error:
        if isinstance(wanted, type) and isinstance(value, wanted):
            return value
        message = f"must be a {getattr(wanted, '__name__', wanted)}, which text cannot express; got {quote(value)}"
        raise Mistakes(Mistake(message)) from error


def _origin(wanted: Any) -> Any:
    return get_origin(wanted) or wanted


def mismatch(value: Any, wanted: Any) -> Mistakes:
    """The value has another form than all values of this type."""
    got = "null" if value is None else f"{quote(value)}, {kind(value)}"
    return Mistakes(Mistake(f"must be {describe(wanted)}; got {got}", shape=True))


def describe(wanted: Any) -> str:
    """A type in words: `an integer or null`, `a list of text`."""
    origin, args = _origin(wanted), [arg for arg in get_args(wanted) if arg is not ...]
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(describe(arg) for arg in args))
    if origin is Literal:
        return " or ".join(quote(arg) for arg in args)
    if origin in _LISTS:
        return f"a list of {describe(args[0])}" if args else "a list"
    if origin in _MAPPINGS:
        return "a mapping"
    if attrs.has(origin):
        return f"the settings of {origin.__name__}"
    return _WORDS.get(wanted) or str(getattr(wanted, "__name__", wanted))


def _number(value: Any, wanted: Any) -> Any:
    if type(value) not in (int, float):
        raise mismatch(value, wanted)
    return float(value)


def _exactly(value: Any, wanted: Any) -> Any:
    if type(value) is not wanted:
        raise mismatch(value, wanted)
    return value


def _nothing(value: Any, wanted: Any) -> Any:
    if value is not None:
        raise mismatch(value, wanted)


def _anything(value: Any, wanted: Any) -> Any:
    if _holds_unknown(value):
        raise Mistakes
    return value


def _holds_unknown(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_unknown(item) for item in value.values())
    if isinstance(value, list):
        return any(_holds_unknown(item) for item in value)
    return value is UNKNOWN


def _literal(value: Any, wanted: Any) -> Any:
    choices = get_args(wanted)
    if any(type(choice) is type(value) and choice == value for choice in choices):
        return value
    near = suggest(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
    raise Mistakes(Mistake(f"must be {describe(wanted)}; got {quote(value)}{near}", shape=type(value) is not str))


def _enum(value: Any, wanted: Any) -> Any:
    if isinstance(value, wanted):
        return value
    for member in wanted:
        if type(member.value) is type(value) and member.value == value:
            return member
    values = [member.value for member in wanted]
    raise Mistakes(Mistake(f"must be {' or '.join(map(quote, values))}; got {quote(value)}"))


def _path(value: Any, wanted: Any) -> Any:
    if not isinstance(value, str | PurePath):
        raise mismatch(value, wanted)
    text = str(value)
    posix, windows = PurePosixPath(text), PureWindowsPath(text)
    outside = posix.is_absolute() or windows.anchor or text.startswith("~")
    if outside or ".." in posix.parts or ".." in windows.parts or "\0" in text:
        raise Mistakes(Mistake(f"{text!r} leads outside: a path in a recipe is relative and has no '..'"))
    return wanted(text)


def _from_dict(value: Any, wanted: Any) -> Any:
    if isinstance(value, wanted):
        return value
    if not isinstance(value, dict):
        raise mismatch(value, wanted)
    _anything(value, wanted)
    try:
        return wanted.from_dict(value)
    except USER_ERRORS as error:
        raise Mistakes(*(_placed(mistake, value) for mistake in flat(error))) from error


def _placed(mistake: Mistake, value: Any) -> Mistake:
    """A mistake below `value`, at the keys that a message such as `weights: num_bits must be ...` names."""
    path: Keys = ()
    for word in re.findall(r"\w+", mistake.message):
        if not isinstance(value, dict):
            break
        if word in value:
            path, value = (*path, word), value[word]
    quoted = bool(path) and repr(path[-1]) in mistake.message  # then the message is about the name
    return evolve(mistake, path=path, key=quoted)


def _list_hook(wanted: Any) -> Hook:
    origin, args = _origin(wanted), get_args(wanted)
    make = _LISTS[origin]
    fixed = origin is tuple and args and args[-1] is not ...

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, list | tuple | set | frozenset):
            raise mismatch(value, wanted)
        if fixed and len(value) != len(args):
            raise Mistakes(Mistake(f"must have {len(args)} items, got {len(value)}", shape=True))
        items, collected = [], Collected()
        for i, item in enumerate(value):
            item_type = args[i] if fixed else (args[0] if args else Any)
            items.append(collected.attempt(i, structure, item, item_type))
        collected.check()
        return make(items)

    return hook


def _mapping_hook(wanted: Any) -> Hook:
    key_type, value_type = get_args(wanted) or (Any, Any)

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, abc.Mapping):
            raise mismatch(value, wanted)
        entries, collected = {}, Collected()
        for name, item in value.items():
            key = collected.attempt(name, structure, name, key_type)
            entry = collected.attempt(name, structure, item, value_type)
            if not collected.incomplete:
                entries[key] = entry
        collected.check()
        return entries

    return hook


def _union_hook(wanted: Any) -> Hook:
    members = get_args(wanted)

    def hook(value: Any, _: Any) -> Any:
        tried: list[Mistakes] = []
        for member in sorted(members, key=lambda member: member is not type(value)):  # 5 is an integer before a number
            try:
                return structure(value, member)
            except Mistakes as error:
                tried.append(error)
        closest = next((error for error in tried if not all(m.shape and not m.path for m in error.found)), None)
        raise closest or mismatch(value, wanted)

    return hook


def has_dicts(wanted: Any) -> bool:
    """Whether a class reads and writes itself as plain data."""
    return isinstance(wanted, type) and all(callable(getattr(wanted, name, None)) for name in ("from_dict", "to_dict"))


def _is_kind(parent: type) -> Callable[[Any], bool]:
    return lambda wanted: isinstance(wanted, type) and issubclass(wanted, parent)


_RULES: tuple[tuple[Callable[[Any], bool], Hook], ...] = (
    # By identity: the rule of `int` must not catch bool, nor an enum of integers
    (lambda wanted: wanted is float, _number),
    (lambda wanted: wanted in (int, str, bool), _exactly),
    (lambda wanted: wanted in (None, NoneType), _nothing),
    (lambda wanted: wanted in (Any, object), _anything),
    (lambda wanted: _origin(wanted) is Literal, _literal),
    (_is_kind(Enum), _enum),
    (_is_kind(PurePath), _path),
    (has_dicts, _from_dict),
)


def _by_rule(value: Any, wanted: Any) -> Any:
    for accepts, hook in _RULES:
        if accepts(wanted):
            return hook(value, wanted)
    raise mismatch(value, wanted)


def _make() -> Converter:
    converter = Converter(forbid_extra_keys=True)
    for accepts, hook in _RULES:
        converter.register_structure_hook_func(accepts, hook)
    for native in (str, bytes, int, float, Path):  # cattrs has hooks for these that come before all functions
        converter.register_structure_hook(native, _by_rule)
    converter.register_structure_hook_factory(lambda t: _origin(t) in _LISTS, _list_hook)
    converter.register_structure_hook_factory(lambda t: _origin(t) in _MAPPINGS, _mapping_hook)
    converter.register_structure_hook_factory(lambda t: _origin(t) in (Union, UnionType), _union_hook)
    return converter


CONVERTER = _make()
