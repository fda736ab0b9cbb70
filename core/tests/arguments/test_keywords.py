"""The keywords of `oneshot` as types: the names that it takes, and no other."""

import inspect
from pathlib import Path
from typing import get_type_hints

import pytest
from attrs import fields
from mypy import api

import coldpress
from coldpress.arguments import (
    DatasetArguments,
    ModelArguments,
    OutputArguments,
    PipelineArguments,
    RecipeArguments,
    TrainingArguments,
    argument_names,
)
from coldpress.arguments.keywords import (
    DatasetKeywords,
    ModelKeywords,
    OneshotKeywords,
    OutputKeywords,
    RecipeKeywords,
)
from coldpress.arguments.training_keywords import TrainingKeywords, TrainKeywords
from coldpress.entrypoints.training_arguments import trainer_argument_names

SCRIPTS = sorted((Path(__file__).parent / "user_scripts").glob("*.py"))
WRONG = "# wrong"  # behind each line of a script that a type checker must refuse


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        (ModelArguments, ModelKeywords),
        (RecipeArguments, RecipeKeywords),
        (DatasetArguments, DatasetKeywords),
        (OutputArguments, OutputKeywords),
        (TrainingArguments, TrainingKeywords),
    ],
)
def test_each_class_has_its_keywords_in_order(arguments, keywords):
    names = [field.name for field in fields(arguments) if field.name not in ("model", "recipe")]

    assert list(get_type_hints(keywords)) == names


def test_together_they_are_what_oneshot_takes():
    assert {field.name for field in fields(PipelineArguments)} <= set(get_type_hints(OneshotKeywords))
    assert {"model", "recipe", *get_type_hints(OneshotKeywords)} == set(argument_names())


def test_together_with_those_of_transformers_they_are_what_train_takes():
    ours = {*argument_names(), *(field.name for field in fields(TrainingArguments))}

    assert {"model", "recipe", *get_type_hints(TrainKeywords)} == {*ours, *trainer_argument_names()}
    assert set(get_type_hints(TrainKeywords)) <= set(inspect.signature(coldpress.train).parameters)


@pytest.mark.parametrize("door", [coldpress.oneshot, coldpress.plan])
def test_what_completes_in_ipython_is_what_is_taken(door):
    assert {*get_type_hints(OneshotKeywords), "model", "recipe"} <= set(inspect.signature(door).parameters)
    assert "arguments" not in inspect.signature(door).parameters


def test_there_are_ten_scripts_and_each_has_a_mistake():
    assert len(SCRIPTS) == 10
    assert [path.name for path in SCRIPTS if WRONG not in path.read_text()] == []


@pytest.mark.slow  # mypy reads torch
def test_mypy_finds_each_mistake_of_ten_scripts_and_no_other(tmp_path):
    options = ["--strict", "--cache-dir", str(tmp_path / "cache"), "--config-file", "", "--no-error-summary"]
    found, problem, _ = api.run([*options, "--scripts-are-modules", *map(str, SCRIPTS)])

    assert problem == ""
    errors = {tuple(line.split(":")[:2]) for line in found.splitlines() if ": error:" in line}
    wrong = {
        (str(path), str(number))
        for path in SCRIPTS
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if line.endswith(WRONG)
    }
    assert {(path.rpartition("/")[2], line) for path, line in errors} == {
        (path.rpartition("/")[2], line) for path, line in wrong
    }, found
    assert 'did you mean "num_calibration_samples"' in found
