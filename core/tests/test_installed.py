"""Plugins as names of a module: those of any distribution, and words for those that are not there."""

import pytest

import coldpress.formats
import coldpress.modifiers
import coldpress.observers
import coldpress.pipelines
from coldpress import registry


@pytest.mark.parametrize("kind", ["formats", "modifiers", "observers", "pipelines"])
def test_every_installed_plugin_whose_name_python_can_say_is_listed_and_found(kind):
    module = getattr(coldpress, kind)
    names = [plugin.name for plugin in registry.available(kind) if plugin.name.isidentifier()]

    assert names
    assert set(names) <= set(dir(module))
    assert all(getattr(module, name) is registry.find(kind, name) for name in names)


def test_a_class_is_found_by_its_own_name_too():
    from coldpress.formats import CompressedTensorsFormat
    from coldpress.observers import MinMax
    from coldpress.pipelines import Sequential

    assert MinMax is registry.find("observers", "minmax")
    assert Sequential is registry.find("pipelines", "sequential")
    assert CompressedTensorsFormat is registry.find("formats", "compressed-tensors")


def test_a_misspelt_name_says_which_is_near():
    with pytest.raises(ImportError, match="cannot import name 'GPTQModifer'"):
        from coldpress.modifiers import GPTQModifer  # noqa: F401
    with pytest.raises(AttributeError, match="did you mean 'GPTQModifier'"):
        _ = coldpress.modifiers.GPTQModifer


def test_a_plugin_that_an_extra_is_called_after_is_offered_with_it(monkeypatch):
    monkeypatch.setattr(registry, "available", lambda kind: [])

    with pytest.raises(AttributeError, match=r"pip install 'coldpress\[sparsegpt\]'"):
        _ = coldpress.modifiers.SparseGPTModifier
    with pytest.raises(AttributeError, match="no installed distribution offers a modifier of this name"):
        _ = coldpress.modifiers.AnybodysModifier
