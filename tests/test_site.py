"""The site's own parts: docstrings that become reStructuredText, and its navigation; `make docs` builds it."""

import importlib.util
import re
from pathlib import Path

import pytest

import coldpress

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def extension():
    pytest.importorskip("sphinx")
    spec = importlib.util.spec_from_file_location("site_extension", ROOT / "docs/site_extension.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sections_of_a_docstring_become_fields(extension):
    docstring = """What it does.

Args:
    x: weights,
        [O, I].
    **others: more.

Returns:
    It: changed,
    and new.
"""

    assert [line for line in extension.rewritten(docstring.splitlines()) if line] == [
        "What it does.",
        ":param x: weights,",
        "    [O, I].",
        r":param \*\*others: more.",
        ":returns: It: changed,",
        "    and new.",
    ]


def test_a_star_of_a_shape_is_no_emphasis(extension):
    assert extension.rewritten(["Sizes, [*lead, C] and [*, C]."]) == [r"Sizes, [\*lead, C] and [\*, C]."]


def test_a_drawing_of_a_docstring_is_literal(extension):
    docstring = ["What it does.", "", "    a | drawing", "", "And more."]

    assert extension.rewritten(docstring) == ["What it does.", "", "::", "", "    a | drawing", "", "And more."]


def test_every_page_of_the_navigation_is_there_once():
    order = tomllib.loads((ROOT / "docs/navigation.toml").read_text(encoding="utf-8"))
    pages = [page for group in order.values() for named in group.values() for page in named]

    assert sorted(set(pages)) == sorted(pages)
    assert [page for page in pages if not list(ROOT.glob(f"{page}.md"))] == []


def test_every_plugin_has_its_card_on_the_site():
    order = tomllib.loads((ROOT / "docs/navigation.toml").read_text(encoding="utf-8"))
    pages = {page for named in order["sidebar"].values() for page in named}

    assert [
        card.parent.name
        for card in ROOT.glob("plugins/*/README.md")
        if f"plugins/{card.parent.name}/README" not in pages
    ] == []


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\.\. auto\w+:: coldpress\.(\w+)(?:\(\))?$", page, re.MULTILINE))

    assert sorted(named) == sorted(set(coldpress.__all__))
