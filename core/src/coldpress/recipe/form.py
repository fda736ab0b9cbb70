"""The form of a modifier's class: what can be seen to be wrong without running it, where it is listed and where used.

A hook that is misspelt or not marked would never be called, and the modifier would do nothing, without a word.
"""

import inspect
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from coldpress import hookspecs, registry
from coldpress.errors import BrokenPluginError
from coldpress.modifier import TRAITS, Modifier

HOOKS = ("initialize", "calibrate_batch", "finalize", "save")
_MARK = f"{hookspecs.PROJECT}_impl"
_NEAR = 0.75  # finalise, calibrate


def check_form(cls: type, name: str | None = None) -> None:
    """Refuse a modifier's class that could not do what its author means.

    Args:
        cls: the class.
        name: what recipes call it; None where it was handed over as a class.

    Raises:
        BrokenPluginError: says what is wrong, where, and what to do.
    """
    found = list(form_problems(cls, name))
    if found:
        owner = registry.owner_of(cls.__module__)
        who = f"{cls.__module__}.{cls.__qualname__}" + ("" if owner is None else f" ({owner})")
        raise BrokenPluginError(f"{who}: {'; '.join(found)}")


def form_problems(cls: type, name: str | None = None) -> Iterator[str]:
    """What is wrong with the form of a modifier's class, and what to do."""
    if not issubclass(cls, Modifier):
        yield f"extend coldpress.Modifier: {cls.__name__} is no modifier"
        return
    if name is not None and name != cls.__name__ and not _is_offered(cls):
        yield (
            f"recipes call it {name!r}, and a recipe that is written down would say {cls.__name__!r}: give class and "
            "entry point one name, or offer the class by its own name too"
        )
    yield from (f"{one!r} is no trait: there are {', '.join(sorted(TRAITS))}" for one in set(cls.traits) - TRAITS)
    marked = {one for one in dir(cls) if _is_marked(cls, one)}
    for hook in HOOKS:
        if hasattr(cls, hook) and hook not in marked:
            yield f"{hook} is never called: put @hookimpl above it"
        elif hook in marked:
            yield from _signature_problems(cls, hook)
    for method in sorted(set(dir(cls)) - set(HOOKS) - set(dir(Modifier))):
        near = get_close_matches(method, HOOKS, n=1, cutoff=_NEAR)
        if method in marked or (near and _looks_like(cls, method, near[0])):
            meant = f", it may mean {near[0]}" if near else ""
            yield f"{method} is never called: there is no hook of this name{meant} (there are {', '.join(HOOKS)})"
    if not marked and not _acts_otherwise(cls):
        yield f"it implements no hook, so it does nothing: write one of {', '.join(HOOKS)}, with @hookimpl above it"


def _is_offered(cls: type) -> bool:
    """Whether recipes know a class by its own name, so that another one is short for it."""
    package = cls.__module__.partition(".")[0]
    own = [one.entry for one in registry.remembered("modifiers") if one.name == cls.__name__]
    return any(one.attr == cls.__name__ and one.module.partition(".")[0] == package for one in own)


def _is_marked(cls: type, name: str) -> bool:
    return getattr(inspect.getattr_static(cls, name), _MARK, None) is not None


def _parameters(function: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []


def _signature_problems(cls: type, hook: str) -> Iterator[str]:
    """What a hook takes that it is not handed."""
    handed = [one.name for one in _parameters(getattr(hookspecs, hook))]
    taken = _parameters(getattr(cls, hook))[1:]  # without self
    other = [one.name for one in taken if one.name not in handed]
    if other:
        called = f"{hook}({', '.join(handed)})"
        yield f"{hook} takes {', '.join(other)}, and is called as {called}: it may take some of these, by these names"


def _looks_like(cls: type, method: str, hook: str) -> bool:
    """Whether a method that is not marked takes what the hook of a near name is handed."""
    value = inspect.getattr_static(cls, method)
    handed = [one.name for one in _parameters(getattr(hookspecs, hook))]
    return inspect.isfunction(value) and [one.name for one in _parameters(value)][1:] == handed


def _acts_otherwise(cls: type) -> bool:
    """Whether it decides after a measuring pass, stands for other modifiers, or acts in training."""
    return any(getattr(cls, name) is not getattr(Modifier, name) for name in ("measure", "expand", "training"))
