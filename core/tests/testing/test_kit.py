"""The kit itself: every bad plugin is caught by the check that is for it, and by no other; good ones pass."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from coldpress.errors import BrokenPluginError, RecipeError, UnknownPluginError
from coldpress.testing.kit import Verdicts, checks_for, conformance
from coldpress.testing.settings_checks import import_is_quiet
from coldpress.testing.subject import subject_of

HERE = Path(__file__).parent


def _module(name):
    """A file of this folder as a module; pytest's importlib mode puts no folder on the path."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


MODIFIERS, OTHERS = _module("modifier_zoo"), _module("plugin_zoo")
STATISTICS, ATTACHMENTS = _module("statistic_zoo"), _module("attachment_zoo")
GOOD = [*MODIFIERS.GOOD, *OTHERS.GOOD, *STATISTICS.GOOD, *ATTACHMENTS.GOOD]
BAD = {**MODIFIERS.BAD, **OTHERS.BAD, **STATISTICS.BAD, **ATTACHMENTS.BAD}


def failing(plugin, *, pipeline=None, without=(), **settings):
    """Names of the checks that fail and wait for no other that does."""
    subject = subject_of(plugin, kind=None, settings=settings, pipeline=pipeline)
    checks = [check for check in checks_for(subject) if check.name not in without]
    verdicts = Verdicts(subject, checks)
    return [c.name for c in checks if verdicts.blocker(c) is None and c.absent() is None and not verdicts.holds(c.name)]


@pytest.mark.parametrize("plugin", GOOD, ids=lambda plugin: plugin.__name__)
def test_good_plugins_pass_everything(plugin):
    assert failing(plugin) == []


@pytest.mark.parametrize(("plugin", "check"), BAD.items(), ids=lambda value: getattr(value, "__name__", None))
def test_bad_plugins_fail_their_check_and_no_other(plugin, check):
    slow = {"streams", "resumes"} - {check}  # which say of the others what they say of the good ones

    assert failing(plugin, without=slow) == [check]


NOISY = """
import os
import torch
from attrs import frozen
from coldpress.plugin import Modifier, hookimpl
{effect}

@frozen(kw_only=True, eq=False)
class Noisy(Modifier):
    \"\"\"Does something when it is imported.\"\"\"

    @hookimpl
    def finalize(self, state, stage) -> None: ...
"""


@pytest.mark.parametrize(
    ("effect", "said"),
    [
        ("print('hello')", "prints 'hello'"),
        ("torch.manual_seed(3)", "torch's random numbers"),
        ("torch.set_default_dtype(torch.float64)", "default dtype"),
        ("os.environ['X_NOISY'] = '1'", "the environment"),
        ("import coldpress_pipelines", "the plugin coldpress_pipelines"),
    ],
)
def test_an_import_with_side_effects_is_caught(tmp_path, monkeypatch, effect, said):
    name = f"noisy_{abs(hash(effect))}"
    (tmp_path / f"{name}.py").write_text(
        "import sys\n" + NOISY.format(effect="if 'pytest' not in sys.modules: " + effect)
    )
    monkeypatch.syspath_prepend(tmp_path)
    subject = subject_of(importlib.import_module(name).Noisy, kind=None, settings={})

    with pytest.raises(AssertionError, match=said):
        import_is_quiet(subject)


def test_every_check_catches_somebody():
    caught = {*BAD.values(), "import_is_quiet"}
    # What the reader of recipes and of observers' settings ensures for every plugin, whatever its author does.
    ensured = {"typo_is_reported", "save_load", "serves_a_run", "batching_does_not_matter"}

    for plugin in GOOD:
        assert {check.name for check in checks_for(subject_of(plugin, kind=None, settings={}))} <= caught | ensured


def test_ids_are_the_names_of_the_checks_and_a_known_failure_is_a_strict_xfail():
    marks = conformance(MODIFIERS.LastBatchOnly, expected_failures={"batching_does_not_matter": "by design"}).pytestmark
    ((_, parameters),) = [mark.args for mark in marks]
    by_id = {parameter.id: parameter for parameter in parameters}

    assert "leaves_no_trace" in by_id
    (mark,) = by_id["batching_does_not_matter"].marks
    assert (mark.name, mark.kwargs) == ("xfail", {"reason": "by design", "strict": True})
    assert not by_id["leaves_no_trace"].marks


def test_checks_that_say_nothing_fail_and_say_why():
    test = conformance(MODIFIERS.MisspeltHook)
    ((_, parameters),) = [mark.args for mark in test.pytestmark]
    check = next(parameter.values[0] for parameter in parameters if parameter.id == "dtypes")

    with pytest.raises(pytest.fail.Exception, match="dtypes says nothing while hooks fails"):
        test(check)


def test_a_failure_that_is_expected_makes_no_other_check_green():
    test = conformance(MODIFIERS.WholeModelOnly, expected_failures={"runs": "it needs the pipeline basic"})
    ((_, parameters),) = [mark.args for mark in test.pytestmark]
    waiting = [one for one in parameters if "runs" in one.values[0].after]

    assert len(waiting) > 8
    for one in waiting:
        assert not one.marks
        with pytest.raises(pytest.fail.Exception, match="says nothing while runs fails"):
            test(one.values[0])


def test_what_this_machine_lacks_is_no_pass(monkeypatch):
    monkeypatch.setattr("coldpress.testing.job_checks.registry.available", lambda kind: [])
    test = conformance(MODIFIERS.GoodPruner)
    ((_, parameters),) = [mark.args for mark in test.pytestmark]
    check = next(one.values[0] for one in parameters if one.id == "save_load")

    with pytest.raises(pytest.fail.Exception, match=r"pip install 'coldpress\[compressed-tensors\]'"):
        test(check)


def test_an_attachment_with_buffers_says_what_is_in_them():
    assert failing(ATTACHMENTS.GoodScale, tensors=ATTACHMENTS.factors) == []
    subject = subject_of(ATTACHMENTS.GoodScale, kind=None, settings={})
    check = next(check for check in checks_for(subject) if check.name == "recorded")
    with pytest.raises(AssertionError, match="names the buffers input_factor: give the setting tensors"):
        check.function(subject)


def test_a_modifier_runs_in_the_pipeline_that_it_needs():
    assert failing(MODIFIERS.WholeModelOnly, pipeline="basic") == []
    with pytest.raises(UnknownPluginError, match="no pipeline is called 'basik'"):
        conformance(MODIFIERS.GoodPruner, pipeline="basik")
    with pytest.raises(ValueError, match="pipeline='basic' is for modifiers; GoodObserver is one of the observers"):
        conformance(OTHERS.GoodObserver, pipeline="basic")


def test_what_the_file_of_a_test_imports_is_no_fault_of_the_classes_in_it(tmp_path, monkeypatch):
    (tmp_path / "test_of_an_author.py").write_text(NOISY.format(effect="import coldpress_pipelines"))
    monkeypatch.syspath_prepend(tmp_path)
    noisy = importlib.import_module("test_of_an_author").Noisy

    names = [check.name for check in checks_for(subject_of(noisy, kind=None, settings={}))]

    assert "import_is_quiet" not in names
    assert "settings_class" in names


def test_one_name_of_two_kinds_asks_for_the_kind():
    with pytest.raises(ValueError, match="'minmax' is the name of observers and statistics: say which with kind="):
        conformance("minmax")


def test_a_check_that_there_is_not_is_an_error():
    with pytest.raises(ValueError, match="did you mean 'dead_input'"):
        conformance(MODIFIERS.GoodPruner, expected_failures={"dead_inputs": "a typo"})


def test_a_check_that_does_not_apply_is_an_error():
    with pytest.raises(ValueError, match="touches_only_targets"):
        conformance(MODIFIERS.GoodMover, expected_failures={"touches_only_targets": "it touches neighbours"})


def test_a_failure_without_a_reason_is_an_error():
    with pytest.raises(ValueError, match="say why"):
        conformance(MODIFIERS.GoodPruner, expected_failures={"dtypes": " "})


def test_settings_reach_the_plugin_and_wrong_ones_are_an_error():
    assert failing(MODIFIERS.GoodPruner, sparsity=0.25) == []
    with pytest.raises(RecipeError, match="sparsity"):
        subject_of(MODIFIERS.GoodPruner, kind=None, settings={"sparsity": 2.0}).make()


def test_an_unknown_name_is_an_error_with_a_suggestion():
    with pytest.raises(UnknownPluginError, match="did you mean 'QuantizationModifier'"):
        conformance("QuantisationModifier")


@pytest.mark.parametrize("kind", ["datasets", "modifier"])
def test_a_kind_without_a_kit_is_an_error(kind):
    with pytest.raises(ValueError, match="there is no kit"):
        conformance(MODIFIERS.GoodPruner, kind=kind)


def test_a_class_that_is_no_plugin_is_an_error():
    with pytest.raises(BrokenPluginError):
        conformance(dict)
    with pytest.raises(BrokenPluginError, match="coldpress.Pipeline"):
        conformance(MODIFIERS.GoodPruner, kind="pipelines")


def test_without_pytest_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytest", None)

    with pytest.raises(ImportError, match=r"coldpress\[testing\]"):
        conformance("static_minmax")


def test_naming_the_kit_imports_neither_torch_nor_pytest():
    program = "import sys, coldpress.testing; print(sorted({'torch', 'pytest', 'transformers'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"
