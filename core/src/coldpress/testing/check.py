"""A check: one promise, as a function that raises when it is not kept."""

from collections.abc import Callable

from attrs import field, frozen

from coldpress.testing.subject import Subject


def _always(subject: Subject) -> bool:
    return True


def _nothing_absent() -> str | None:
    return None


@frozen(eq=False)
class Check:
    """One promise of a plugin.

    Attributes:
        function: raises when the promise is not kept; its name is the check's name, its docstring the promise.
        after: checks that must pass for this one to say anything; where one fails, this one fails too.
        applies: whether a plugin makes this promise at all.
        absent: what this machine lacks to check it, in words; None when nothing.
    """

    function: Callable[[Subject], None]
    after: tuple[str, ...] = field(default=(), kw_only=True)
    applies: Callable[[Subject], bool] = field(default=_always, kw_only=True)
    absent: Callable[[], str | None] = field(default=_nothing_absent, kw_only=True)

    @property
    def name(self) -> str:
        """What `expected_failures` calls it."""
        return self.function.__name__
