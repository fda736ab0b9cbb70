"""An interrupted run resumes only with the code that began it: a plugin that was edited or upgraded is told by name."""

import importlib
import json
import os
import sys

import pytest

from coldpress import CheckpointError, oneshot, registry
from coldpress.checkpoint.journal import NAME
from coldpress.checkpoint.made_with import changes, made_with
from coldpress.testing.interrupt import interrupted
from coldpress.testing.models import tiny_llama, tiny_tokenizer
from coldpress.testing.package import write_package

SOURCE = '''
from attrs import frozen
from coldpress.plugin import PRUNES, Modifier, hookimpl

@frozen(kw_only=True, eq=False)
class Scaled(Modifier):
    """Multiplies weights."""

    traits = frozenset({PRUNES})

    @hookimpl
    def finalize(self, state, stage):
        for layer in self.layers(stage):
            state.set_weight(layer, layer.weight * 0.5)
'''
STATISTIC = "from coldpress.plugin import Statistic\nclass Sum(Statistic): ...\n"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that puts the modifier's package, as it is now, in place of what was installed."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two versions within a second have one time of change

    def install(source=SOURCE, version="1.0", *, name="acme_scaled", points=None):
        for path in site.glob(f"{name}-*"):
            path.rename(site / f"old-{len(os.listdir(site))}")
        points = points or {"coldpress.modifiers": {"Scaled": f"{name}:Scaled"}}
        write_package(site, name, source, points, version=version)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        registry._remembered.cache_clear()  # what the start of another process does

    yield install
    sys.modules.pop("acme_scaled", None)
    registry._remembered.cache_clear()


@pytest.fixture
def model(tmp_path):
    tiny_llama(hidden=32).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def compress(model, recipe="modifiers: [Scaled: {ignore: [lm_head]}]", **settings):
    given = {"output_dir": model.parent / "out", "pipeline": "data_free", "format": "dense", "quiet": True}
    return oneshot(str(model), recipe, **{**given, **settings})


def test_the_same_code_resumes(model, install):
    install()
    with interrupted(2):
        compress(model)

    install()
    compress(model)

    manifest = json.loads((model.parent / "out/manifest.json").read_text())
    assert manifest["made with"]["acme-scaled"]["version"] == "1.0"
    assert manifest["made with"]["acme-scaled"]["classes"] == ["Scaled"]
    assert {"coldpress", "coldpress-pipelines", "coldpress-compressed-tensors"} <= manifest["made with"].keys()


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("1.0", "Scaled of acme-scaled 1.0: its code was changed; finished stages were made by what it was"),
        ("1.1", "Scaled of acme-scaled: 1.0 then, 1.1 now; finished stages were made by the former"),
    ],
)
def test_a_plugin_that_was_edited_or_upgraded_meanwhile_is_refused_by_name(model, install, version, said):
    install()
    with interrupted(2):
        compress(model)
    journal = (model.parent / "out.partial" / NAME).read_bytes()

    install(SOURCE.replace("0.5", "0.25"), version)
    with pytest.raises(CheckpointError) as error:
        compress(model)

    assert said in str(error.value)
    assert "pass restart=True to discard it and begin anew" in str(error.value)
    assert (model.parent / "out.partial" / NAME).read_bytes() == journal
    first, second = (compress(model, **more) for more in ({"restart": True}, {"overwrite": True}))
    for name, weight in first.state_dict().items():
        assert (weight == second.state_dict()[name]).all()


def test_a_failing_plugin_that_is_mended_does_not_go_on_in_silence(model, install):
    failing = SOURCE.replace(
        "            state", "            if 'layers.1' in stage.name: raise KeyError(layer.name)\n            state"
    )
    install(failing)
    with pytest.raises(Exception, match="KeyError"):
        compress(model)

    install()
    with pytest.raises(CheckpointError, match=r"Scaled of acme-scaled 1.0: its code was changed"):
        compress(model)


def test_what_a_recipe_may_request_by_name_counts_too(model, install):
    install()
    with interrupted(2):
        compress(model)

    install(STATISTIC, "3.1", name="acme_sum", points={"coldpress.statistics": {"sum": "acme_sum:Sum"}})
    with pytest.raises(CheckpointError, match="acme-sum: has a part now and had none"):
        compress(model)


def test_a_plugin_that_has_no_part_does_not_count(model, install):
    install()
    with interrupted(2):
        compress(model)

    other = {"coldpress.modifiers": {"Other": "acme_other:Scaled"}, "coldpress.observers": {"far": "acme_other:Far"}}
    install(name="acme_other", points=other)
    compress(model)

    assert (model.parent / "out/model.safetensors").is_file()


def test_a_journal_that_says_something_else_of_the_code_is_damaged(model, install):
    install()
    with interrupted(2):
        compress(model)
    journal = model.parent / "out.partial" / NAME
    first, *rest = journal.read_text().splitlines(keepends=True)
    start = json.loads(first)
    start["binding"]["made with"] = {"acme-scaled": "1.0"}
    journal.write_text(json.dumps(start) + "\n" + "".join(rest))

    with pytest.raises(CheckpointError, match=r"line 1: 'made with' of 'binding' is no table from package to version"):
        compress(model)


def test_a_class_of_no_distribution_is_bound_to_its_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = []
    for source in (SOURCE, SOURCE, f"{SOURCE}# another line\n"):
        (tmp_path / "loose_scaled.py").write_text(source)
        sys.modules.pop("loose_scaled", None)
        importlib.invalidate_caches()
        found.append(made_with([importlib.import_module("loose_scaled").Scaled()], recipe="", observers=()))

    one, same, other = found
    assert one == same
    (line,) = changes(one, other)
    assert line.startswith("loose_scaled.Scaled: its code was changed")


def test_a_class_of_a_notebook_is_bound_to_what_is_left_of_it(monkeypatch):
    cls = type("Loose", (), {"__module__": "__main__", "finalize": lambda self: 1})
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    other = type("Loose", (), {"__module__": "__main__"})

    one, two = (made_with([kind()], recipe="", observers=())["__main__.Loose"] for kind in (cls, other))

    assert one["sha256"] != two["sha256"]
