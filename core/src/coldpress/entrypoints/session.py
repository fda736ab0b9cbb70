"""A run as an object: `Oneshot`, in two steps; `Session`, which remembers the last run.

Conveniences for scripts; nothing in the library reads either.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from coldpress.arguments import parse_arguments
from coldpress.entrypoints.oneshot import run
from coldpress.recipe import Recipe, read_recipe
from coldpress.state import State

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from coldpress.arguments.keywords import OneshotKeywords


class Oneshot:
    """A run in two steps: arguments and recipe are checked at once, the model is compressed by the call.

        job = Oneshot(model="smollm2", recipe="recipe.yaml", output_dir="out")
        model = job()

    Args:
        model: as `coldpress.oneshot` takes it.
        recipe: as `coldpress.oneshot` takes it.
        **arguments: as `coldpress.oneshot` takes them.

    Attributes:
        model: as given; the compressed model after the call.
        processor: the tokenizer or processor as given; after the call, that of the run.
        recipe: what is done to the model.
    """

    def __init__(self, model: Any = None, recipe: Any = None, **arguments: "Unpack[OneshotKeywords]") -> None:
        self._arguments = parse_arguments({"model": model, "recipe": recipe, **arguments})
        settings, steps = self._arguments.model, self._arguments.recipe
        self.model: Any = settings.model
        self.processor: Any = settings.tokenizer if settings.tokenizer is not None else settings.processor
        self.recipe = read_recipe(steps.recipe, arguments=steps.recipe_args, stage=steps.stage)

    def __call__(self) -> Any:
        """Do it; returns what `coldpress.oneshot` returns."""
        state = run(self._arguments)
        self.model, self.processor = state.model, state.tokenizer
        return state.model if self._arguments.output.return_model else None


class Session:
    """A place that remembers the state of the run that was made through it.

    Attributes:
        state: of the last run; None before the first.
        recipe: of the last run; None before the first.
    """

    def __init__(self) -> None:
        self.state: State | None = None
        self.recipe: Recipe | None = None

    def oneshot(self, model: Any = None, recipe: Any = None, **arguments: "Unpack[OneshotKeywords]") -> Any:
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
