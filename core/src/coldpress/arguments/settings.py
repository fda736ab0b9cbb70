"""Settings of classes of attrs: a misspelt one is named, and a `repr` shows those that differ from their defaults."""

from collections.abc import Collection, Iterator, Mapping
from reprlib import Repr
from typing import Any

from attrs import NOTHING, Factory, fields

from coldpress.errors import SettingError
from coldpress.spelling import suggest

_SHORT = Repr()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 6
_SHORT.maxstring = _SHORT.maxlong = 60
_SHORT.maxother = 400
_SHORT.maxlevel = 8


def known_settings(cls: type[Any], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings, if the class has all of them.

    Raises:
        SettingError: it has none of a name; a near one is suggested.
    """
    own = [attribute.alias for attribute in fields(cls) if attribute.init]
    for name in settings:
        if name not in own:
            raise SettingError(f"{cls.__name__} has no setting {name!r}{suggest(name, own)}")
    return settings


def short_repr(instance: Any, always: Collection[str] = ()) -> str:
    """`GPTQModifier(scheme='W4A16', group_size=64)`: what differs from its default, long values cut.

    Args:
        instance: of a class of attrs.
        always: settings that are shown at their defaults, too.
    """
    given = ", ".join(f"{name}={_SHORT.repr(value)}" for name, value in _given(instance, always))
    return f"{type(instance).__name__}({given})"


def _given(instance: Any, always: Collection[str]) -> Iterator[tuple[str, Any]]:
    for attribute in fields(type(instance)):
        value = getattr(instance, attribute.name, NOTHING)
        shown = attribute.name in always or not _is_default(value, attribute, instance)
        if attribute.init and attribute.repr and shown:
            yield attribute.alias, value


def _is_default(value: Any, attribute: Any, instance: Any) -> bool:
    default = attribute.default
    if default is NOTHING or value is default:
        return default is not NOTHING
    try:
        if isinstance(default, Factory):  # type: ignore[arg-type]  # a class
            default = default.factory(instance) if default.takes_self else default.factory()
        if attribute.converter is not None and callable(attribute.converter):
            default = attribute.converter(default)
        return bool(value is default or (type(value) is type(default) and value == default))
    except Exception:  # of a plugin's converter or comparison: the value is shown
        return False
