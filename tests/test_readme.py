"""The README fits on a screen, and what it and its neighbours claim is true: numbers, targets, what there is.

Its blocks are run by test_doc_blocks.py.
"""

import json
import re
from pathlib import Path
from statistics import median

import pytest

from coldpress import read_recipe
from coldpress.errors import RecipeError
from coldpress.registry import available

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
START = (ROOT / "docs/start.md").read_text(encoding="utf-8")
WHAT_THERE_IS = (ROOT / "docs/reference/README.md").read_text(encoding="utf-8")
BENCHMARKS = ROOT / "benchmarks"
ROW = r"^\|.*results/(compare-[\w-]+)\.md\)\)? \| (\S+), theirs (\S+) \| (\S+), theirs (\S+) \|"


def rows(page):
    return re.findall(ROW, (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)


def test_it_fits_on_a_screen():
    assert len(TEXT.splitlines()) <= 60


def test_the_targets_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    named = re.findall(r"`make ([\w-]+)`", TEXT)

    assert [target for target in named if f"\n{target}:" not in makefile] == []


def test_the_mistake_is_reported_as_it_is_shown(tmp_path, monkeypatch):
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```", START, re.MULTILINE | re.DOTALL)
    (mistake,) = re.findall(r"^```text\n(.*?)^```", START, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(recipe.replace("ignore:", "ignroe:"))

    with pytest.raises(RecipeError) as caught:
        read_recipe("recipe.yaml")

    assert f"{caught.value}\n".startswith(mistake)


def test_every_file_that_is_linked_is_there():
    links = re.findall(r"\]\((?!http)([^)#]+)", TEXT)

    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


def measured(page, side):
    """Seconds and perplexity of one side, as its record has them."""
    record = json.loads((BENCHMARKS / f"results/{page}.json").read_text(encoding="utf-8"))
    runs = [run for run in record["runs"] if run["side"] == side]
    perplexity = median(record["costs"][run["sha256"]]["perplexity"] for run in runs)
    return median(run["compress_seconds"] for run in runs), perplexity


def as_written(number, quoted):
    """A number with as many decimals as the text that quotes it."""
    return f"{number:.{len(quoted.partition('.')[2])}f}"


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md", "plugins/gptq/README.md"])
def test_numbers_beside_llmcompressor_are_those_that_were_measured(page):
    found = rows(page)

    assert len(found) >= 4
    for result, *quoted in found:
        (seconds, perplexity), (their_seconds, their_perplexity) = (measured(result, side) for side in ("ours", "peer"))
        numbers = (seconds, their_seconds, perplexity, their_perplexity)
        assert quoted == [as_written(*pair) for pair in zip(numbers, quoted, strict=True)], result


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("Modifiers", "modifiers"),
        ("Observers", "observers"),
        ("Pipelines", "pipelines"),
        ("Statistics", "statistics"),
        ("Formats", "formats"),
    ],
)
def test_the_table_names_what_is_there_and_nothing_else(row, kind):
    (cell,) = re.findall(rf"^\| {row} \| (.*) \|$", WHAT_THERE_IS, re.MULTILINE)

    ours = {plugin.name for plugin in available(kind) if not plugin.distribution.endswith("-example")}
    assert set(re.findall(r"`([\w-]+)`", cell)) == ours
