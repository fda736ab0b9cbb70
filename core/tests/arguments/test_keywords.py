"""The keywords of `oneshot` as types: the names that it takes, and no other."""

from typing import get_type_hints

import pytest
from attrs import fields
from mypy import api

from coldpress.arguments import (
    DatasetArguments,
    ModelArguments,
    OutputArguments,
    PipelineArguments,
    RecipeArguments,
    argument_names,
)
from coldpress.arguments.keywords import (
    DatasetKeywords,
    ModelKeywords,
    OneshotKeywords,
    OutputKeywords,
    RecipeKeywords,
)

SCRIPT = """
from pathlib import Path

import coldpress
from coldpress.modifiers import GPTQModifier

model = coldpress.oneshot(
    "smollm2",
    GPTQModifier(scheme="W4A16", ignore=["lm_head"]),
    dataset=[{"text": "one"}],
    num_calibration_samples=32,
    splits={"calibration": "train[:5%]"},
    sequential_targets=["LlamaDecoderLayer"],
    output_dir=Path("out"),
    format=["compressed-tensors", "gguf"],
)
predicted: int = coldpress.plan("smollm2", "recipe.yaml", max_seq_length=None).after
coldpress.Oneshot("smollm2", "recipe.yaml", stage="first", quiet=True)()
"""
MISTAKES = """
import coldpress

coldpress.oneshot("m", "r", num_calibration_sample=32)
coldpress.oneshot("m", "r", max_seq_length="512")
coldpress.oneshot("m", "r", output_dir=3)
coldpress.oneshot("m", "r", overwrite="yes")
coldpress.oneshot("m", "r", offload_activations="gpu")
coldpress.Oneshot("m", "r", stream_weigths=True)
coldpress.plan("m", "r", number_of_samples=1)
coldpress.load_modell("m")
"""


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        (ModelArguments, ModelKeywords),
        (RecipeArguments, RecipeKeywords),
        (DatasetArguments, DatasetKeywords),
        (OutputArguments, OutputKeywords),
    ],
)
def test_each_class_has_its_keywords_in_order(arguments, keywords):
    names = [field.name for field in fields(arguments) if field.name not in ("model", "recipe")]

    assert list(get_type_hints(keywords)) == names


def test_together_they_are_what_oneshot_takes():
    assert {field.name for field in fields(PipelineArguments)} <= set(get_type_hints(OneshotKeywords))
    assert {"model", "recipe", *get_type_hints(OneshotKeywords)} == set(argument_names())


@pytest.mark.slow  # mypy reads torch
def test_mypy_finds_each_mistake_of_a_script_and_no_other(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "mistakes.py").write_text(MISTAKES)

    options = ["--strict", "--cache-dir", str(tmp_path / "cache"), "--config-file", "", "--no-error-summary"]
    found, problem, _ = api.run([*options, str(tmp_path / "script.py"), str(tmp_path / "mistakes.py")])

    assert problem == ""
    errors = [line.partition("mistakes.py:")[2] for line in found.splitlines() if ": error:" in line]
    wrong = [number for number, line in enumerate(MISTAKES.splitlines(), 1) if line.startswith("coldpress.")]
    assert [int(line.partition(":")[0]) for line in errors] == wrong, found
    assert 'did you mean "num_calibration_samples"' in errors[0]
