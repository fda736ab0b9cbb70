"""docs/smoothing.md: its recipes are read, its modifier keeps every promise, and the cards have every setting."""

import importlib.util
import re
import sys
from pathlib import Path

import attrs
import pytest

from coldpress import read_recipe
from coldpress.registry import find
from coldpress.testing.kit import Verdicts, checks_for
from coldpress.testing.subject import subject_of

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/smoothing.md").read_text(encoding="utf-8")


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", TEXT, re.M | re.S)


def test_its_recipes_are_read():
    assert [len(read_recipe(block).modifiers) for block in blocks("yaml")] == [2, 2, 2]


def test_its_modifier_keeps_every_promise(tmp_path):
    (block,) = blocks("python")
    path = tmp_path / "smoothing_md.py"
    path.write_text(block, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    subject = subject_of(module.Whitener, kind=None, settings={})
    checks = checks_for(subject)
    verdicts = Verdicts(subject, checks)
    assert [check.name for check in checks if not verdicts.holds(check.name)] == []


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("SmoothQuantModifier", "smoothquant"),
        ("LogarithmicEqualizationModifier", "smoothquant"),
        ("AWQModifier", "awq"),
    ],
)
def test_every_setting_is_on_its_card(name, card):
    text = (ROOT / f"plugins/{card}/README.md").read_text(encoding="utf-8")

    settings = [field.name for field in attrs.fields(find("modifiers", name)) if field.init]
    assert [setting for setting in settings if f"`{setting}`" not in text] == []


def test_every_file_that_is_linked_is_there():
    links = re.findall(r"\]\((?!http)([^)#]+)", TEXT)

    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
