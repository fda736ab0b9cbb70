"""Structure: plain settings to attrs classes; the fields are the schema, and nothing is converted in silence.

`5` is not text, `"5"` no integer and `true` no number; only an integer is accepted where a number is expected.
A class with `from_dict` and `to_dict` is read with `from_dict`.
All mistakes of one class are found, not only the first.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast, get_origin, get_type_hints

import attrs
from attrs import NOTHING, Attribute, define, field

from coldpress.errors import BrokenPluginError, RecipeError
from coldpress.recipe.converter import CONVERTER, has_dicts, mismatch, structure
from coldpress.recipe.mistake import USER_ERRORS, Collected, Mistake, Mistakes, flat
from coldpress.recipe.problem import show
from coldpress.spelling import suggest

T = TypeVar("T")


def structure_settings(cls: type[T], settings: Mapping[str, Any], *, where: str) -> T:
    """An attrs class made of settings, as strictly as in a recipe.

    Args:
        cls: the class of a format, a pipeline, an observer, ...
        settings: values by name.
        where: what stands before each problem: `format compressed-tensors`.

    Raises:
        RecipeError: settings are unknown, missing or of the wrong type; all of them are named.
    """
    try:
        return build(cls, settings)
    except Mistakes as error:
        lines = [": ".join(part for part in (where, show(m.path), m.message) if part) for m in error.found]
        raise RecipeError(lines) from error


def build(cls: type[T], settings: Mapping[str, Any]) -> T:
    """An attrs class made of settings.

    Raises:
        Mistakes: everything wrong with them.
        BrokenPluginError: the class itself is faulty.
    """
    if not attrs.has(cls):
        raise BrokenPluginError(f"{cls.__name__} is not an attrs class, so it has no settings")
    if inspect.isabstract(cls):
        lacks = ", ".join(sorted(cls.__abstractmethods__))
        raise BrokenPluginError(f"{cls.__module__}.{cls.__name__} must implement {lacks}")
    made: T = _Building(cls, settings).build()
    return made


@define
class _Building:
    """One class being made of settings: values first, then converters and validators one by one."""

    cls: type[Any]
    settings: Mapping[str, Any]
    collected: Collected = field(factory=Collected)

    def build(self) -> Any:
        fields = {a.alias: a for a in attrs.fields(self.cls) if a.init}
        self._check_names(fields)
        types = accepted_types(self.cls)
        values = {}
        for alias, a in fields.items():
            if alias in self.settings:
                value = self._run(a, structure, self.settings[alias], types[a.name])
                if value is not NOTHING:
                    values[alias] = value
        self._try(values)
        self.collected.check()
        try:
            return self.cls(**values)
        except USER_ERRORS as error:
            raise Mistakes(*flat(error)) from error
        except Exception as error:
            raise self._broken(error) from error

    def _check_names(self, fields: Mapping[str, "Attribute[Any]"]) -> None:
        for name in self.settings:
            if name not in fields:
                near = suggest(str(name), fields) or f"; {self.cls.__name__} has: {', '.join(fields) or 'no settings'}"
                self._note(Mistake(f"unknown setting{near}", (name,), key=True))
        for alias, a in fields.items():
            if a.default is NOTHING and alias not in self.settings:
                self._note(Mistake(f"the setting {alias!r} is required"))

    def _note(self, mistake: Mistake) -> None:
        self.collected.incomplete = True
        self.collected.found.append(mistake)

    def _try(self, values: Mapping[str, Any]) -> None:
        """Run every converter and validator, although attrs would stop at the first that fails."""
        instance = object.__new__(self.cls)
        for a in attrs.fields(self.cls):
            value = values[a.alias] if a.init and a.alias in values else self._default(a, instance)
            value = value if value is NOTHING else self._run(a, _convert, a, value, instance)
            if value is not NOTHING:
                object.__setattr__(instance, a.name, value)
        for a in attrs.fields(self.cls):
            if a.validator is not None and hasattr(instance, a.name):
                self._run(a, a.validator, instance, a, getattr(instance, a.name))

    def _default(self, a: "Attribute[Any]", instance: Any) -> Any:
        if a.default is NOTHING or a.alias in self.settings:
            return NOTHING  # missing or unreadable, and already noted
        factory: Any = a.default
        if not isinstance(factory, attrs.Factory):  # type: ignore[arg-type]
            return factory
        return self._run(a, factory.factory, *[instance] * factory.takes_self)

    def _run(self, a: "Attribute[Any]", make: Callable[..., Any], *args: Any) -> Any:
        try:
            return self.collected.attempt(a.alias, make, *args)
        except Exception as error:
            if self.collected.incomplete:
                return NOTHING  # it misses a field that could not be read
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> BrokenPluginError:
        return BrokenPluginError(
            f"{self.cls.__name__} fails while checking its settings: {type(error).__name__}: {error}"
        )


def _convert(a: "Attribute[Any]", value: Any, instance: Any) -> Any:
    converter: Any = a.converter
    if isinstance(converter, attrs.Converter):
        converter = cast(Any, converter)  # its parts are not in the stubs
        return converter.converter(value, *[instance] * converter.takes_self, *[a] * converter.takes_field)
    return converter(value) if converter else value


def accepted_types(cls: type[Any]) -> dict[str, Any]:
    """What each field takes: its annotation, or the annotation of what its converter takes.

    Raises:
        BrokenPluginError: an annotation names something that cannot be found.
    """
    try:
        hints = get_type_hints(cls)
    except NameError as error:
        raise BrokenPluginError(f"an annotation of {cls.__name__} cannot be read: {error}") from error
    types = {a.name: hints.get(a.name, Any) for a in attrs.fields(cls)}
    for a in attrs.fields(cls):
        taken = _taken(a.converter) if a.converter else None
        types[a.name] = types[a.name] if taken is None else taken
    return types


def _taken(converter: Any) -> Any:
    function = getattr(converter, "converter", converter)  # of attrs.Converter
    if isinstance(function, type):
        return None  # `tuple` and friends do not say what they take
    try:
        name = next(iter(inspect.signature(function).parameters), "")
        return get_type_hints(function).get(name)
    except (TypeError, ValueError, NameError):
        return None


def _class(value: Any, wanted: Any) -> Any:
    if isinstance(value, get_origin(wanted) or wanted):
        return value
    if not isinstance(value, dict):
        raise mismatch(value, wanted)
    return build(wanted, value)


def _is_class(wanted: Any) -> bool:
    return attrs.has(get_origin(wanted) or wanted) and not has_dicts(wanted)


CONVERTER.register_structure_hook_func(_is_class, _class)
