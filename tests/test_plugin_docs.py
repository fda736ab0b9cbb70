"""docs/hooks.md is what the docstrings say, and the blocks of docs/plugins.md run and keep their promises."""

import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

from coldpress import SchemeError
from coldpress.schemes import NumberFormat
from coldpress.testing.kit import Verdicts, checks_for
from coldpress.testing.subject import subject_of

DOCS = Path(__file__).parents[1] / "docs"


def test_hooks_md_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_hooks", DOCS / "make_hooks.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    assert (DOCS / "hooks.md").read_text(encoding="utf-8") == script.page(), "run: python docs/make_hooks.py"


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    """The module that the Python blocks of plugins.md are, one after the other."""
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "plugins.md").read_text(encoding="utf-8"), re.M | re.S)
    path = tmp_path_factory.mktemp("docs") / "plugins_md.py"
    tests = [block for block in blocks if "conformance(" in block]  # in a package they are a file of their own
    path.write_text("\n".join(block for block in blocks if block not in tests), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    exec("\n".join(tests), vars(module))
    yield module
    del sys.modules[path.stem]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ColumnPruner", {}),
        ("MyRounding", {"scheme": "W4A16", "ignore": ["lm_head"]}),
        ("FullRange", {}),
        ("WholeForward", {}),
        ("PlainCodes", {}),
    ],
)
def test_the_plugins_that_are_shown_keep_every_promise(plugins, name, settings):
    subject = subject_of(getattr(plugins, name), kind=None, settings=settings)
    checks = checks_for(subject)
    verdicts = Verdicts(subject, checks)

    assert [check.name for check in checks if not verdicts.holds(check.name)] == []


def test_the_number_format_that_is_shown_is_one(plugins):
    assert isinstance(plugins.FLOAT6, NumberFormat)
    assert plugins.FLOAT6.name == "float6"


def test_the_data_set_that_is_shown_has_rows(plugins):
    assert all(row["text"] for row in plugins.texts())


def test_the_tests_that_are_shown_are_tests(plugins):
    assert isinstance(plugins.test_conformance, types.FunctionType)
    assert isinstance(plugins.test_known, types.FunctionType)


def test_the_format_that_is_shown_says_what_it_holds(plugins):
    with pytest.raises(SchemeError, match="plain-codes holds"):
        plugins.PlainCodes().check(_scheme("W4A16"), "layer", (8, 128))


def test_every_kind_is_in_the_table():
    from coldpress.registry import KINDS

    text = (DOCS / "plugins.md").read_text(encoding="utf-8")

    assert [kind for kind in KINDS if f"`coldpress.{kind}`" not in text] == []


def _scheme(name):
    from coldpress import preset

    return preset(name)
