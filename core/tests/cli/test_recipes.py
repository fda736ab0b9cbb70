"""`coldpress recipes`: what is taken by name, what it gave where it was measured, and that it can be run."""

import json
from pathlib import Path

import pytest
import yaml

from coldpress.arguments import DEFAULT_IGNORE
from coldpress.recipe import ReadyRecipe, read_recipe, ready_recipes

RESULTS = Path(__file__).parents[3] / "benchmarks/results"
EVERY = ready_recipes()
WHOLE = [name for name, one in EVERY.items() if not one.takes_scheme()]
VALUES = {"scheme": "W4A16", "group_size": 64, "ignore": ["lm_head"]}


def test_the_table_fits_and_names_recipes_and_algorithms(coldpress):
    answer = coldpress("recipes")

    assert answer.code == 0, answer.err
    assert max(len(line.rstrip()) for line in answer.out.splitlines()) <= 80
    assert {"gptq-w4a16", "rtn", "awq"} <= set(answer.out.split())


def test_json_says_where_numbers_are_from(coldpress):
    found = {line["name"]: line for line in json.loads(coldpress("recipes", "--json").out)["recipes"]}

    assert found["gptq-w4a16"]["measured"]["source"] == "choices-gptq.json: as it is"
    assert found["gptq"]["takes_scheme"]
    assert not found["w4a16"]["reads_data"]


def test_one_is_printed_as_a_file_that_can_be_changed(coldpress, tmp_path):
    (tmp_path / "own.yaml").write_text(coldpress("recipes", "gptq-w4a16").out)

    assert read_recipe(tmp_path / "own.yaml").modifiers[0].scheme == "W4A16"


@pytest.mark.parametrize("name", EVERY)
def test_each_is_read_and_says_whether_it_reads_data(name):
    found: ReadyRecipe = EVERY[name]

    recipe = read_recipe(name, arguments=VALUES if found.takes_scheme() else None)

    assert any(modifier.needs_data() for modifier in recipe.modifiers) == found.reads_data


@pytest.mark.parametrize("name", [name for name in EVERY if EVERY[name].measured])
def test_what_it_gave_is_what_was_measured(name):
    measured = EVERY[name].measured
    file, _, choice = measured.source.partition(": ")
    lines = json.loads((RESULTS / file).read_text())

    (line,) = [line for line in lines if line["choice"] == choice]
    assert measured.kl == pytest.approx(line["kl"], abs=5e-4)
    assert measured.perplexity == pytest.approx(line["perplexity"], abs=0.05)
    assert measured.original_perplexity == pytest.approx(lines[0]["perplexity"], abs=0.05)


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_one_ignores_what_the_command_line_does(name):
    assert yaml.safe_load(EVERY[name].text)["args"]["ignore"] == list(DEFAULT_IGNORE)


def test_a_file_of_the_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("w4a16").write_text("modifiers:\n  - QuantizationModifier: {scheme: W8A8}\n")

    assert read_recipe("w4a16").modifiers[0].scheme == "W8A8"
