"""Sessions: the last run's state, kept for those who ask later; a convenience that nothing in the library reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from coldpress.arguments import parse_arguments
from coldpress.entrypoints.oneshot import run
from coldpress.recipe import Recipe, read_recipe
from coldpress.state import State


class Session:
    """A place that remembers the state of the run that was made through it.

    Attributes:
        state: of the last run; None before the first.
        recipe: of the last run; None before the first.
    """

    def __init__(self) -> None:
        self.state: State | None = None
        self.recipe: Recipe | None = None

    def oneshot(self, model: Any = None, recipe: Any = None, **arguments: Any) -> Any:
        """Do what `coldpress.oneshot` does, and remember the state and the recipe.

        Args:
            model: as `coldpress.oneshot` takes it.
            recipe: as `coldpress.oneshot` takes it.
            **arguments: as `coldpress.oneshot` takes them.

        Returns:
            The compressed model.
        """
        parsed = parse_arguments({"model": model, "recipe": recipe, **arguments})
        self.state = run(parsed)
        self.recipe = read_recipe(recipe, arguments=parsed.recipe.recipe_args, stage=parsed.recipe.stage)
        return self.state.model

    def reset(self) -> None:
        """Forget."""
        self.state = None
        self.recipe = None


_active: ContextVar[Session | None] = ContextVar("coldpress_session", default=None)


def active_session() -> Session:
    """The session of this thread or task; made when it is first asked for."""
    session = _active.get()
    if session is None:
        session = Session()
        _active.set(session)
    return session


@contextmanager
def create_session() -> Iterator[Session]:
    """A session of its own inside a `with` block; the one before is active again afterwards."""
    token = _active.set(Session())
    try:
        yield active_session()
    finally:
        _active.reset(token)


def reset_session() -> None:
    """Forget what the active session remembers."""
    active_session().reset()
