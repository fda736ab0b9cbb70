"""Validators and converters of arguments, whose messages are for users."""

import os
from collections.abc import Callable
from typing import Any

from attrs import Attribute

from coldpress.errors import ArgumentError
from coldpress.spelling import suggest


def is_a(*kinds: type, optional: bool = False) -> Callable[[Any, "Attribute[Any]", Any], None]:
    """A validator: the value is of one of these types; a bool is not a number."""

    def check(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
        if value is None and optional:
            return
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join("text" if kind is str else kind.__name__ for kind in kinds)
            raise ArgumentError(f"{attribute.name} must be {wanted}{' or None' if optional else ''}, got {value!r}")

    return check


def at_least(least: int, *, optional: bool = False) -> Callable[[Any, "Attribute[Any]", Any], None]:
    """A validator: a whole number that is not less than `least`, and that 63 bits hold."""

    def check(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
        if value is None and optional:
            return
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
            none = " or None" if optional else ""
            most = " and below 2**63" if isinstance(value, int) and value > least else ""
            raise ArgumentError(
                f"{attribute.name} must be a whole number of at least {least}{most}{none}, got {value!r}"
            )

    return check


def one_of(choices: tuple[str, ...], *, or_callable: bool = False) -> Callable[[Any, "Attribute[Any]", Any], None]:
    """A validator: one of these words."""

    def check(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
        if value in choices or (or_callable and callable(value)):
            return
        more = " or a function" if or_callable else ""
        raise ArgumentError(
            f"{attribute.name} must be one of {', '.join(choices)}{more}, got {value!r}{suggest(str(value), choices)}"
        )

    return check


def plain(name: Any) -> Any:
    """`torch.bfloat16` as its plain name; anything else as it is."""
    return str(name).removeprefix("torch.") if str(name).startswith("torch.") else name


_LONGEST = 255  # bytes of a part of a path


def path(value: Any) -> Any:
    """A path as text, `~` expanded as a shell does; anything else as it is.

    Raises:
        ArgumentError: no file can have this name.
    """
    value = os.fsdecode(value) if isinstance(value, os.PathLike) else value
    if not isinstance(value, str):
        return value
    if "\0" in value:
        raise ArgumentError(f"{value!r} cannot be a path: it holds a NUL character")
    found = os.path.expanduser(value)
    if any(len(os.fsencode(part)) > _LONGEST for part in found.split(os.sep)):
        raise ArgumentError(f"{value[:60]!r}... cannot be a path: no file system takes so long a name")
    if found.startswith("~") and os.sep in found and not os.path.lexists(found):
        raise ArgumentError(f"{value!r} is no path: there is no user {found.partition(os.sep)[0][1:]!r} here")
    return found


def device_name(device: Any) -> str | None:
    """A device as text."""
    return None if device is None else str(device)


def as_list(value: Any) -> Any:
    """One text, or several in a tuple, as a list; anything else as it is."""
    return [value] if isinstance(value, str) else list(value) if isinstance(value, tuple) else value
