"""What the doors may be told."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import fields

from coldpress.arguments import (
    WITHOUT_EFFECT,
    DatasetArguments,
    ModelArguments,
    OutputArguments,
    PipelineArguments,
    RecipeArguments,
    argument_names,
    parse_arguments,
)
from coldpress.errors import ArgumentError

CLASSES = (ModelArguments, RecipeArguments, DatasetArguments, PipelineArguments, OutputArguments)


def test_defaults_are_those_that_users_know():
    arguments = parse_arguments({"model": "some/model"})

    assert arguments.model.precision == "auto"
    assert arguments.model.tie_word_embeddings is True
    assert arguments.model.model_revision == "main"
    assert arguments.recipe.recipe_args is None
    assert arguments.dataset.num_calibration_samples == 512
    assert arguments.dataset.max_seq_length is None
    assert arguments.dataset.data_collator == "truncation"
    assert arguments.dataset.batch_size is None
    assert arguments.pipeline.pipeline is None
    assert arguments.output.output_dir is None
    assert arguments.output.overwrite is False


def test_every_unknown_name_is_told_at_once_with_a_suggestion():
    with pytest.raises(ArgumentError) as caught:
        parse_arguments({"model": "m", "max_sequence_length": 4, "recipes": None, "zzz": 1})

    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "did you mean 'max_seq_length'?" in lines[0]
    assert "did you mean 'recipe'?" in lines[1]
    assert "did you mean" not in lines[2]


def test_no_name_belongs_to_two_classes():
    names = [attribute.name for cls in CLASSES for attribute in fields(cls)]

    assert len(names) == len(set(names))


def test_settings_of_pipelines_are_arguments_too():
    assert {"model", "output_dir", "sequential_targets", "propagate_error"} <= set(argument_names())


@pytest.mark.parametrize("cls", CLASSES)
def test_every_argument_is_documented_in_its_order(cls):
    documented = re.findall(r"^ {8}(\w+): ", cls.__doc__, flags=re.MULTILINE)

    assert documented == [attribute.name for attribute in fields(cls)]


@pytest.mark.parametrize("cls", CLASSES)
def test_an_argument_says_that_it_has_no_effect_exactly_when_it_has_none(cls):
    idle = set(re.findall(r"^ {8}(\w+): no effect", cls.__doc__, flags=re.MULTILINE))

    assert idle == {attribute.name for attribute in fields(cls)} & set(WITHOUT_EFFECT)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("precision", "bfloat6", "did you mean 'bfloat16'?"),
        ("num_calibration_samples", 0, "at least 1"),
        ("num_calibration_samples", True, "at least 1"),
        ("max_seq_length", -1, "at least 1"),
        ("batch_size", "4", "at least 1"),
        ("data_collator", "paddding", "did you mean 'padding'?"),
        ("shuffle_calibration_samples", "yes", "must be bool"),
        ("seed", -1, "at least 0"),
        ("recipe_args", "dampening=1", "must be dict"),
        ("splits", 3, "splits must be"),
        ("preprocessing_func", "file.py:function", "must be a function"),
        ("output_dir", 3, "must be text or None"),
        ("device", 3.5, None),
        ("model", "", "model is missing"),
    ],
)
def test_a_bad_value_names_its_argument(name, value, says):
    if says is None:
        assert parse_arguments({"model": "m", name: value}).model.device == "3.5"
        return

    with pytest.raises(ArgumentError, match=re.escape(says)) as caught:
        parse_arguments({"model": "m", name: value})
    assert str(caught.value).startswith(name)


def test_a_missing_model_is_told():
    with pytest.raises(ArgumentError, match="model is missing"):
        parse_arguments({})


def test_tokenizer_and_processor_exclude_each_other():
    with pytest.raises(ArgumentError, match="two names of one argument"):
        parse_arguments({"model": "m", "tokenizer": "a", "processor": "b"})


@pytest.mark.parametrize("pairs", [["a=1", "b = x=y"], {"a": 1}])
def test_recipe_args_go_to_the_recipe_as_they_are(pairs):
    assert parse_arguments({"model": "m", "recipe_args": pairs}).recipe.recipe_args == pairs


def test_the_peers_spelling_of_data_free_is_understood():
    assert parse_arguments({"model": "m", "pipeline": "datafree"}).pipeline.pipeline == "data_free"


def test_paths_and_dtypes_may_be_objects():
    torch = pytest.importorskip("torch")

    arguments = parse_arguments(
        {"model": Path("a"), "output_dir": Path("b"), "precision": torch.float16, "device": torch.device("cpu")}
    )

    assert arguments.model.model == "a"
    assert arguments.output.output_dir == "b"
    assert arguments.model.precision == "float16"
    assert arguments.model.device == "cpu"


def test_an_argument_without_effect_is_warned_of_only_when_set(caplog):
    with caplog.at_level(logging.WARNING, logger="coldpress.arguments"):
        parse_arguments({"model": "m", "sequential_prefetch": False, "moe_calibrate_all_experts": True})
        assert not caplog.records
        parse_arguments({"model": "m", "sequential_prefetch": True})

    assert "sequential_prefetch has no effect" in caplog.text


def test_reading_the_arguments_imports_neither_torch_nor_transformers():
    code = "import coldpress.arguments, sys; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert out.stdout.strip() == "[]"


PATHS = ("model", "config_name", "tokenizer", "processor", "dataset", "dataset_path", "output_dir", "log_dir")


@pytest.mark.parametrize("name", PATHS)
def test_a_tilde_is_expanded_in_every_path(name, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/somebody")

    parsed = parse_arguments({"model": "m", name: "~/x"})

    assert [getattr(part, name) for part in parsed if hasattr(part, name)] == ["/home/of/somebody/x"]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(("value", "message"), [("a\0b", "NUL"), ("~nobody-of-this-name/x", "no user 'nobody-of")])
def test_what_no_path_can_be_is_refused_in_every_path(name, value, message):
    with pytest.raises(ArgumentError, match=message):
        parse_arguments({"model": "m", name: value})
