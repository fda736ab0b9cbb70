"""The kit: finds a plugin, chooses the promises that its kind makes, and returns them as one parametrised test."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from attrs import define, field

from coldpress.spelling import suggest
from coldpress.testing.check import Check
from coldpress.testing.subject import Subject, subject_of


def conformance(
    plugin: str | type,
    *,
    kind: str | None = None,
    settings: Mapping[str, Any] | None = None,
    pipeline: str | None = None,
    mixture: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> Callable[..., None]:
    """A test for every promise of a plugin, as one function: assign it to a name that begins with `test_`.

    Args:
        plugin: the name that recipes say, or a class that is not installed.
        kind: modifiers, observers, pipelines, formats, sources, statistics or attachments; found by itself where it
            can be.
        settings: what the plugin is made with in every check.
        pipeline: name of the installed one that a modifier is run in; None for block by block through the kit's own,
            for one that shows the original model where the modifier needs its inputs, and, from a folder, for the
            default of `oneshot`.
        mixture: type of the tiny mixture of experts that a modifier is run on, such as `mixtral`; None for a Llama.
        expected_failures: name of a check to the reason why it fails; it must fail, or the entry must go.

    Returns:
        A function for pytest, parametrised over the checks; the ids are their names.

    Raises:
        ImportError: pytest is not installed.
        PluginError: no installed plugin has the plugin, or it cannot be imported.
        ValueError: `expected_failures` names a check that there is not, or that does not apply.
    """
    pytest = _pytest()
    subject = subject_of(plugin, kind=kind, settings=settings or {}, pipeline=pipeline, mixture=mixture)
    checks = checks_for(subject)
    reasons = dict(expected_failures or {})
    _check_names(reasons, checks, subject)
    verdicts = Verdicts(subject, checks)
    parameters = [
        pytest.param(
            check,
            id=check.name,
            marks=[pytest.mark.xfail(reason=reasons[check.name], strict=True)] if check.name in reasons else [],
        )
        for check in checks
    ]

    def test(check: Check) -> None:
        blocker = verdicts.blocker(check)
        if blocker is not None:
            pytest.fail(
                f"{check.name} says nothing while {blocker} fails", pytrace=False
            )  # what is skipped looks green
        absent = check.absent()
        if absent is not None:
            pytest.fail(absent, pytrace=False)
        check.function(subject)

    test.__doc__ = f"The promises of {subject.name}, one of the {subject.kind}."
    parametrised: Callable[..., None] = pytest.mark.parametrize("check", parameters)(test)
    return parametrised


def checks_for(subject: Subject) -> tuple[Check, ...]:
    """The checks that apply to a plugin, in the order in which they run."""
    return tuple(check for check in _catalogue(subject.kind) if check.applies(subject))


@define
class Verdicts:
    """Which checks hold, found out once and only when another check builds on them.

    Attributes:
        subject: the plugin.
        checks: those that apply to it.
        known: name of a check to whether it holds.
    """

    subject: Subject
    checks: Sequence[Check]
    known: dict[str, bool] = field(factory=dict)

    def blocker(self, check: Check) -> str | None:
        """The first check that must hold for this one to say anything, and does not."""
        return next((name for name in check.after if not self.holds(name)), None)

    def holds(self, name: str) -> bool:
        """Whether a check passes; one that does not apply does."""
        check = next((check for check in self.checks if check.name == name), None)
        if check is None:
            return True
        if name not in self.known:
            self.known[name] = self.blocker(check) is None and _passes(check, self.subject)
        return self.known[name]


def _passes(check: Check, subject: Subject) -> bool:
    try:
        check.function(subject)
    except Exception:  # the check's own id tells what it was
        return False
    return True


def _catalogue(kind: str) -> tuple[Check, ...]:
    # Imported here: the checks need torch and transformers, naming the kit in a test file does not.
    checks: tuple[Check, ...] = import_module(f"coldpress.testing.{kind[:-1]}_checks").CHECKS
    return checks


def _check_names(reasons: Mapping[str, str], checks: Sequence[Check], subject: Subject) -> None:
    known = [check.name for check in checks]
    for name, reason in reasons.items():
        if name not in known:
            raise ValueError(
                f"expected_failures: {subject.name} has no check {name!r}{suggest(name, known)} "
                f"(its checks: {', '.join(known)})"
            )
        if not reason.strip():
            raise ValueError(f"expected_failures: say why {name} fails")


def _pytest() -> Any:  # the module; its decorators are typed as it likes
    try:
        import pytest
    except ImportError as error:
        raise ImportError("the conformance kit runs in pytest: pip install 'coldpress[testing]'") from error
    return pytest
