"""The registry: lazily, by kind and name, and every mistake says what to do."""

import importlib
import sys

import pytest

from coldpress import registry
from coldpress.errors import BrokenPluginError, PluginConflictError, UnknownPluginError


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that installs a distribution with one module and its entry points."""

    def install(name, source, points, *, folder="site"):
        site = tmp_path / folder
        info = site / f"{name}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = [line for kind, line in points]
        groups = [f"[coldpress.{kind}]" for kind, _ in points]
        (info / "entry_points.txt").write_text("\n".join(x for pair in zip(groups, lines, strict=True) for x in pair))
        (site / f"{name}.py").write_text(source)
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(str(site))
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, name, raising=False)

    return install


def test_a_plugin_is_found_by_kind_and_name(install):
    install("acme_one", "class Thing: ...", [("observers", "acme = acme_one:Thing")])

    assert registry.find("observers", "acme").__name__ == "Thing"


def test_nothing_is_imported_until_it_is_named(install):
    install("acme_two", "class Thing: ...", [("observers", "acme2 = acme_two:Thing")])

    (plugin,) = [plugin for plugin in registry.available("observers") if plugin.name == "acme2"]

    assert (plugin.kind, plugin.distribution, plugin.version) == ("observers", "acme_two", "1.2")
    assert "acme_two" not in sys.modules
    assert plugin.load().__module__ == "acme_two"


def test_what_is_installed_while_the_process_runs_is_found(install):
    install("acme_early", "x = 1", [("observers", "early = acme_early:x")])
    assert registry.find("observers", "early") == 1

    install("acme_late", "x = 2", [("observers", "late = acme_late:x")])

    assert registry.find("observers", "late") == 2


def test_an_unknown_name_gets_a_suggestion_and_the_list():
    with pytest.raises(
        UnknownPluginError, match=r"no pipeline is called 'basik'; did you mean 'basic'\? \(installed: "
    ):
        registry.find("pipelines", "basik")


@pytest.mark.parametrize("name", ["os:system", "../evil", "a b", "", "x" + "/y" * 2])
def test_a_name_is_never_a_path_or_an_import(name):
    with pytest.raises(UnknownPluginError, match="named by its entry point"):
        registry.find("modifiers", name)


def test_two_distributions_with_one_name_are_both_named(install):
    install("acme_a", "x = 1", [("formats", "acme-format = acme_a:x")])
    install("acme_b", "x = 1", [("formats", "acme-format = acme_b:x")])

    with pytest.raises(PluginConflictError, match=r"acme_a 1.2 and acme_b 1.2 both offer the format 'acme-format'"):
        registry.find("formats", "acme-format")


def test_one_distribution_seen_twice_is_no_conflict(install):
    install("acme_twice", "x = 7", [("formats", "twice = acme_twice:x")])
    install("acme_twice", "x = 7", [("formats", "twice = acme_twice:x")], folder="again")

    assert registry.find("formats", "twice") == 7


def test_a_broken_plugin_is_named_and_its_error_is_the_cause(install):
    install("acme_broken", "import not_there_at_all", [("modifiers", "Broken = acme_broken:Thing")])

    with pytest.raises(
        BrokenPluginError, match=r"the modifier 'Broken' of acme_broken 1.2.*not_there_at_all"
    ) as caught:
        registry.find("modifiers", "Broken")

    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_broken_plugin_breaks_only_those_who_name_it(install):
    install("acme_bad", "1 / 0", [("observers", "bad = acme_bad:x")])
    install("acme_good", "x = 3", [("observers", "good = acme_good:x")])

    assert registry.find("observers", "good") == 3


def test_a_kind_that_there_is_not_is_a_programming_error():
    with pytest.raises(ValueError, match="did you mean 'modifiers'"):
        registry.available("modifier")
    with pytest.raises(ValueError, match="is not a kind of plugin"):
        registry.find("nonsense", "x")


def test_looking_up_twice_reads_the_metadata_once(monkeypatch):
    real, calls = registry.entry_points, []

    def counted(**kind):
        calls.append(kind)
        return real(**kind)

    monkeypatch.setattr(registry, "entry_points", counted)
    for _ in range(3):
        registry.find("pipelines", "basic")

    assert len(calls) == 1
