"""`observer_for`: names and settings of a scheme to an observer."""

from importlib.metadata import EntryPoint

import pytest
from attrs import field, frozen
from attrs.validators import gt

from coldpress.calibration.observer import Observer, observer_for
from coldpress.errors import BrokenPluginError, SchemeError, UnknownPluginError
from coldpress.schemes import QuantizationArgs


@frozen(kw_only=True)
class Patient(Observer):
    """An observer with a setting."""

    patience: int = field(default=5, validator=gt(0))


@frozen(kw_only=True)
class Plain(Observer):
    """An observer without settings."""


@pytest.fixture(autouse=True)
def _entries(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"patient": "Patient", "plain": "Plain", "broken": "pytest"}
    points = [EntryPoint(name, f"{__name__}:{value}", "coldpress.observers") for name, value in values.items()]
    monkeypatch.setattr("coldpress.registry.entry_points", lambda group: points if group.endswith("observers") else [])


def test_the_name_in_the_scheme_comes_before_the_default():
    assert type(observer_for(QuantizationArgs(observer="patient"), "plain")) is Patient
    assert type(observer_for(QuantizationArgs(), "plain")) is Plain


def test_settings_of_the_scheme_reach_the_observer():
    args = QuantizationArgs(observer_kwargs={"patience": 2})

    observer = observer_for(args, "patient")

    assert observer == Patient(args=args, patience=2)


@pytest.mark.parametrize(
    ("settings", "default", "message"),
    [
        ({"patiense": 2}, "patient", "'patient' has no 'patiense'; did you mean 'patience'?; it has patience"),
        ({"grid": 2}, "plain", "'plain' has no 'grid'; it has no settings"),
        ({"args": None}, "patient", "'patient' has no 'args'; it has patience"),
        ({"patience": 0}, "patient", "observer_kwargs of 'patient': 'patience' must be > 0: 0"),
        ({"patience": "2"}, "patient", "observer_kwargs of 'patient': '>' not supported"),
    ],
)
def test_a_mistaken_setting_is_answered_with_the_known_ones(settings, default, message):
    with pytest.raises(SchemeError) as caught:
        observer_for(QuantizationArgs(observer_kwargs=settings), default)

    assert message in str(caught.value)


def test_an_unknown_observer_is_answered_with_a_near_one():
    with pytest.raises(UnknownPluginError, match="no observer is called 'patent'; did you mean 'patient'?"):
        observer_for(QuantizationArgs(observer="patent"), "plain")


def test_what_is_no_observer_is_refused():
    with pytest.raises(BrokenPluginError, match="the observer 'broken' is .* not a subclass of coldpress.Observer"):
        observer_for(QuantizationArgs(observer="broken"), "plain")
