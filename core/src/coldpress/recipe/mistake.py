"""Mistake: one thing wrong with settings, before anybody knows where in which file they stand."""

from collections.abc import Callable, Iterator
from typing import Any

from attrs import NOTHING, define, evolve, field, frozen
from cattrs import BaseValidationError
from cattrs.errors import AttributeValidationNote, IterableValidationNote

from coldpress.errors import ColdpressError, SchemeError
from coldpress.recipe.problem import Path

USER_ERRORS = (ValueError, TypeError, ColdpressError)
"""What a converter or validator raises when a setting is wrong; anything else is a fault of the plugin."""


@frozen
class Mistake:
    """One thing wrong with settings.

    Attributes:
        message: what, and what to do.
        path: where, from the top of the settings.
        key: the name is wrong, and not the value.
        shape: the value has another form than every value of this type.
    """

    message: str
    path: Path = ()
    key: bool = False
    shape: bool = False


class Mistakes(Exception):  # noqa: N818 - it carries errors, it is not one
    """Settings do not fit a type; none in it means that the value is `UNKNOWN` and the reason already told."""

    def __init__(self, *found: Mistake) -> None:
        super().__init__(*found)
        self.found = found


@define
class Collected:
    """Mistakes of the parts of one value."""

    found: list[Mistake] = field(factory=list)
    incomplete: bool = False

    def attempt(self, step: Any, make: Callable[..., Any], *args: Any) -> Any:
        """`make(*args)`, the part at `step`; or NOTHING, and its mistakes noted below `step`."""
        try:
            return make(*args)
        except (Mistakes, BaseValidationError, *USER_ERRORS) as error:
            self.incomplete = True
            self.found += flat(error, (step,))
            return NOTHING

    def check(self) -> None:
        """Raise what was found, if any part is missing."""
        if self.incomplete:
            raise Mistakes(*self.found)


def flat(error: BaseException, path: Path = ()) -> Iterator[Mistake]:
    """The mistakes in any error that structuring raises, cattrs's groups included."""
    if isinstance(error, Mistakes):
        for mistake in error.found:
            yield evolve(mistake, path=path + mistake.path)
    elif isinstance(error, BaseValidationError):
        for inner in error.exceptions:
            yield from flat(inner, path + _step_of(inner))
    else:
        # validators of attrs put the field and the value after the message
        place = error.place if isinstance(error, SchemeError) else ()
        yield Mistake(str(error.args[0]) if error.args else type(error).__name__, path + place, key=bool(place))


def _step_of(error: BaseException) -> Path:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, AttributeValidationNote):
            return (note.name,)
        if isinstance(note, IterableValidationNote):
            return (note.index,)
    return ()
