"""`coldpress plugins`: what is there, what is broken, what is offered twice."""

import importlib
import json
import sys
from importlib.metadata import EntryPoint

import pytest
from attrs import frozen

from coldpress import read_recipe
from coldpress.errors import BrokenPluginError, RecipeError
from coldpress.plugin import Modifier, hookimpl
from coldpress.recipe import structure_settings
from coldpress.registry import KINDS, Plugin, available
from coldpress.testing import run
from coldpress.testing.package import write_package


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
    return json.loads(answer.out)["plugins"]


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


FORMS = """
from typing import ClassVar
from attrs import frozen
from coldpress.plugin import Attachment, Format, Modifier, Observer, Statistic, hookimpl

@frozen(kw_only=True, eq=False)
class Good(Modifier):
    @hookimpl
    def finalize(self, state, stage): ...

@frozen(kw_only=True, eq=False)
class Unmarked(Modifier):
    def finalize(self, state, stage): ...

@frozen(kw_only=True, eq=False)
class Misspelt(Good):
    @hookimpl
    def initialise(self, state, stage): ...

@frozen(kw_only=True, eq=False)
class MisspeltAndUnmarked(Modifier):
    def finalise(self, state, stage): ...

@frozen(kw_only=True, eq=False)
class WrongSignature(Modifier):
    @hookimpl
    def finalize(self, state, layer): ...

@frozen(kw_only=True, eq=False)
class NoTrait(Good):
    traits: ClassVar[frozenset[str]] = frozenset({"prunez"})

@frozen(kw_only=True, eq=False)
class Idle(Modifier):
    pass

@frozen(kw_only=True)
class Half(Format):
    def check(self, scheme, name, shape): ...

@frozen(kw_only=True)
class NoMerge(Observer):
    def update(self, statistic, x): ...
    def range(self, statistic): ...

@frozen(kw_only=True)
class Follows(Statistic):
    supports: ClassVar[frozenset[str]] = frozenset({"rescale"})
    def update(self, value, x): ...
    def merge(self, a, b): ...

@frozen(kw_only=True)
class Clamp(Attachment):
    kind: ClassVar[str] = "clamp"
    def outputs(self, module, y): return y
"""
NAMES = ("Unmarked", "Misspelt", "MisspeltAndUnmarked", "WrongSignature", "NoTrait", "Idle")
POINTS = {
    "coldpress.modifiers": {"Renamed": "acme_forms:Good", **{name: f"acme_forms:{name}" for name in NAMES}},
    "coldpress.modifier": {"Good": "acme_forms:Good"},
    "coldpress_formats": {"stray": "acme_forms:Half"},
    "coldpress.formats": {"half": "acme_forms:Half"},
    "coldpress.observers": {"no_merge": "acme_forms:NoMerge"},
    "coldpress.statistics": {"follows": "acme_forms:Follows"},
    "coldpress.attachments": {"clip": "acme_forms:Clamp"},
}
HOOKS = "(there are initialize, calibrate_batch, finalize, save)"
SAID = {
    "Renamed": "recipes call it 'Renamed', and a recipe that is written down would say 'Good': give class and entry "
    "point one name, or offer the class by its own name too",
    "Unmarked": "finalize is never called: put @hookimpl above it",
    "Misspelt": f"initialise is never called: there is no hook of this name, it may mean initialize {HOOKS}",
    "MisspeltAndUnmarked": f"finalise is never called: there is no hook of this name, it may mean finalize {HOOKS}",
    "WrongSignature": "finalize takes layer, and is called as finalize(state, stage)",
    "NoTrait": "'prunez' is no trait: there are drops_experts, prunes, quantizes",
    "Idle": "it implements no hook, so it does nothing",
    "Good": "there is no group 'coldpress.modifier', so nothing finds acme_forms:Good: write 'coldpress.modifiers'",
    "stray": "there is no group 'coldpress_formats', so nothing finds acme_forms:Half: write 'coldpress.formats'",
    "half": "it must implement config; it must implement read",
    "no_merge": "it must implement merge",
    "follows": "it supports rescale, and has no method of this name",
    "clip": "its kind is 'clamp' and its entry point 'clip': give both one name",
}


@pytest.fixture
def acme(tmp_path, monkeypatch):
    """An installed package whose plugins are wrong in form, one mistake each."""
    write_package(tmp_path / "site", "acme_forms", FORMS, POINTS, version="1.2")
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield
    sys.modules.pop("acme_forms", None)


def test_what_is_wrong_in_form_is_listed_once_each_with_package_class_and_what_to_do(coldpress, acme):
    found = {line["name"]: line for line in findings(coldpress) if line["distribution"] == "acme-forms"}

    assert found.keys() == SAID.keys()
    for name, said in SAID.items():
        assert said in found[name]["problem"], name
        assert "acme_forms:" in found[name]["problem"]
        assert (found[name]["ok"], found[name]["version"]) == (False, "1.2")


@pytest.mark.parametrize("name", ["Renamed", *NAMES])
def test_a_recipe_that_names_a_modifier_of_wrong_form_is_refused_in_the_same_words(acme, name):
    with pytest.raises(RecipeError) as error:
        read_recipe(f"modifiers: [{name}]")

    (problem,) = error.value.problems
    assert SAID[name] in problem
    assert f"acme_forms.{'Good' if name == 'Renamed' else name} (acme-forms 1.2): " in problem
    assert problem.startswith("<recipe>:1:13: ")


def test_a_class_of_wrong_form_that_is_handed_over_is_refused_before_anything_runs(acme):
    cls = importlib.import_module("acme_forms").Unmarked

    with pytest.raises(
        BrokenPluginError, match=r"Unmarked \(acme-forms 1.2\): finalize is never called: put @hookimpl"
    ):
        run(cls())


def test_a_name_in_a_group_that_there_is_not_says_which_group_is_meant(acme):
    with pytest.raises(RecipeError, match="acme-forms 1.2 offers it in the group 'coldpress.modifier', which is none"):
        read_recipe("modifiers: [Good]")


def test_two_equal_steps_of_a_class_that_compares_settings_are_refused():
    @frozen(kw_only=True)
    class Equal(Modifier):
        @hookimpl
        def finalize(self, state, stage): ...

    with pytest.raises(BrokenPluginError, match=r"decorate Equal with @frozen\(kw_only=True, eq=False\)"):
        run(Equal(), Equal())


def test_a_format_that_lacks_methods_is_refused_by_their_names(acme):
    with pytest.raises(BrokenPluginError, match=r"acme_forms.Half must implement config, read, restore, tensors"):
        structure_settings(importlib.import_module("acme_forms").Half, {}, where="format half")


def test_a_package_of_another_release_is_told(coldpress, tmp_path, monkeypatch):
    points = {"coldpress.modifiers": {"OldModifier": "coldpress_old:OldModifier"}}
    source = "from coldpress.plugin import Modifier as OldModifier\n"
    write_package(tmp_path, "coldpress_old", source, points, version="7.2.0")
    metadata = tmp_path / "coldpress_old-7.2.0.dist-info/METADATA"
    metadata.write_text(metadata.read_text() + "Requires-Dist: coldpress<7.3,>=7.2\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    (line,) = [line for line in findings(coldpress) if line["name"] == "OldModifier"]

    assert not line["ok"]
    assert line["problem"].startswith(
        "coldpress-old 7.2.0 is for coldpress<7.3,>=7.2, and coldpress 0.1.0 is installed"
    )


def test_an_extra_of_coldpress_says_which_package_it_is_for(coldpress, monkeypatch):
    offers = [plugin("GPTQModifier", "coldpress_gptq:GPTQModifier", distribution="coldpress-gptq", version="0.9.0")]
    monkeypatch.setattr("coldpress.registry.available", lambda kind: offers if kind == "modifiers" else [])

    (line,) = findings(coldpress)

    assert (
        line["problem"]
        == "coldpress 0.1.0 is for coldpress-gptq<0.2,>=0.1, not for 0.9.0: upgrade the older of the two"
    )


def test_a_plugin_by_name_shows_its_settings_with_types_defaults_and_meaning(coldpress):
    answer = coldpress("plugins", "gptqmodifier")

    assert answer.code == 0, answer.err
    assert "dampening_frac: float, default 0.01" in answer.out
    assert "correction: Literal['gptaq', 'qronos', 'foem'] | None, default None" in answer.out
    assert "share of the mean diagonal of the Gram matrix" in answer.out
    assert "calibration data" in answer.out


def test_json_of_a_plugin_has_what_it_takes_and_needs(coldpress):
    (found,) = json.loads(coldpress("plugins", "QuantizationModifier", "--json").out)["plugins"]

    assert (found["kind"], found["traits"], found["needs"]) == ("modifiers", ["quantizes"], None)
    settings = {one["name"]: one for one in found["settings"]}
    assert settings["group_size"]["type"] == "int | None"
    assert all(one["meaning"] for one in found["settings"])


def test_a_plugin_that_is_not_there_has_a_near_name(coldpress):
    answer = coldpress("plugins", "GPTQModifer")

    assert answer.code == 2
    assert "did you mean 'GPTQModifier'" in answer.err


@pytest.mark.parametrize("kind", KINDS)
def test_settings_of_every_plugin_are_explained(coldpress, kind):
    for one in available(kind):
        for found in json.loads(coldpress("plugins", one.name, "--json").out)["plugins"]:
            assert all(setting["meaning"] for setting in found["settings"]), one.name
