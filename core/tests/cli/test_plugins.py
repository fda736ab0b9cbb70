"""`coldpress plugins`: what is there, what is broken, what is offered twice."""

import json
from importlib.metadata import EntryPoint

import pytest

from coldpress.registry import KINDS, Plugin


def plugin(
    name: str, value: str, *, kind: str = "modifiers", distribution: str = "dist", version: str = "1.0"
) -> Plugin:
    return Plugin(kind, name, distribution, version, EntryPoint(name, value, f"coldpress.{kind}"))


@pytest.fixture
def installed(monkeypatch):
    """Pretend that only these are installed."""

    def pretend(*plugins: Plugin) -> None:
        monkeypatch.setattr("coldpress.registry.available", lambda kind: [p for p in plugins if p.kind == kind])

    return pretend


def findings(coldpress) -> list[dict]:
    answer = coldpress("plugins", "--json")
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def test_everything_that_we_ship_works(coldpress):
    found = findings(coldpress)

    assert {line["kind"] for line in found} <= set(KINDS)
    assert [line for line in found if not line["ok"]] == []
    assert ("modifiers", "QuantizationModifier", "coldpress-quantization") in {
        (line["kind"], line["name"], line["distribution"]) for line in found
    }


def test_a_plugin_that_cannot_be_imported_says_why(coldpress, installed):
    installed(plugin("Gone", "no_such_module:Gone"))

    (line,) = findings(coldpress)

    assert not line["ok"]
    assert "ModuleNotFoundError: No module named 'no_such_module'" in line["problem"]


@pytest.mark.parametrize(
    ("kind", "value", "problem"),
    [
        ("modifiers", "json:JSONDecoder", "is not a subclass of coldpress.Modifier"),
        ("statistics", "json:JSONDecoder", "is not a subclass of coldpress.Statistic"),
        ("number_formats", "json:JSONDecoder", "is not a coldpress.schemes.NumberFormat called Odd"),
        ("datasets", "json:__all__", "is neither a function from the name of a split to rows nor a HubDataset"),
    ],
)
def test_a_plugin_of_the_wrong_kind_is_broken(coldpress, installed, kind, value, problem):
    installed(plugin("Odd", value, kind=kind))

    (line,) = findings(coldpress)

    assert line["problem"] == f"{value} {problem}"


def test_one_name_of_two_distributions_is_a_conflict_that_names_both(coldpress, installed):
    value = "coldpress.modifier:Modifier"
    installed(plugin("Twice", value), plugin("Twice", value, distribution="other", version="2.0"))

    problems = [line["problem"] for line in findings(coldpress)]

    assert problems == ["dist 1.0 and other 2.0 both offer this name; uninstall one of them"] * 2


def test_the_table_shows_the_reason(coldpress, installed):
    installed(plugin("Gone", "no_such_module:Gone"))

    answer = coldpress("plugins")

    assert "broken" in answer.out
    assert "no_such_module" in answer.out
    assert max(len(line) for line in answer.out.splitlines()) <= 80
