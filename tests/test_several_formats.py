"""One run, more than one checkpoint: the same codes in each, streamed and resumed as one."""

import json

import pytest
import torch
from typer.testing import CliRunner

from coldpress import ArgumentError, SchemeError, load_model, oneshot
from coldpress.cli.app import app
from coldpress.recipe import read_recipe, write_recipe
from coldpress.testing.interrupt import interrupted
from coldpress.testing.models import batches, logits, tiny_llama, tiny_tokenizer

GGUF = "{gguf: {pre_tokenizer: gpt-2}}"


def compress(output, *, formats, scheme="W4A16_ASYM", model=None, **settings):
    step = f"QuantizationModifier: {{scheme: {scheme}, ignore: [lm_head]}}"
    text = f"format: [{', '.join(formats)}]\nmodifiers:\n  - {step}\n"
    model = tiny_llama(hidden=128) if model is None else model
    return oneshot(model, text, output_dir=output, tokenizer=tiny_tokenizer(), quiet=True, **settings)


def test_each_format_has_a_folder_with_the_codes_of_the_run(tmp_path):
    model = compress(tmp_path / "out", formats=["compressed-tensors", "gptq", "awq", GGUF])

    data = batches(rows=2)
    for name in ("compressed-tensors", "gptq", "awq", "gguf"):
        assert torch.equal(logits(load_model(tmp_path / "out" / name, dtype="float32"), data), logits(model, data)), (
            name
        )
        config = json.loads((tmp_path / "out" / name / "config.json").read_text())
        assert config["quantization_config"]["quant_method"] == name
        assert (tmp_path / "out" / name / "tokenizer.json").is_file()
    above = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file())
    assert above == ["manifest.json", "recipe.yaml", "report.html", "report.json"]


def test_a_folder_is_that_of_a_run_with_its_format_alone(tmp_path):
    compress(tmp_path / "several", formats=["gptq", GGUF])
    compress(tmp_path / "gptq", formats=["gptq"])

    alone, beside = (tmp_path / "gptq/gptq", tmp_path / "several/gptq")
    for name in ("model.safetensors", "config.json"):
        assert (alone / name).read_bytes() == (beside / name).read_bytes()


def test_an_interrupted_run_gives_the_same_files(tmp_path):
    formats = ["compressed-tensors", GGUF]
    compress(tmp_path / "whole", formats=formats)

    with interrupted(2):
        compress(tmp_path / "resumed", formats=formats)
    compress(tmp_path / "resumed", formats=formats)

    for name in ("compressed-tensors/model.safetensors", "gguf/model.gguf"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


def test_a_streamed_run_returns_the_model_of_the_first(tmp_path):
    tiny_llama(hidden=128, dtype=torch.bfloat16).save_pretrained(tmp_path / "model")

    model = compress(tmp_path / "out", formats=["gptq", "dense"], model=str(tmp_path / "model"))

    data = batches(rows=2)
    for name in ("gptq", "dense"):
        assert torch.equal(logits(load_model(tmp_path / "out" / name), data), logits(model, data))


def test_what_one_of_them_cannot_write_is_refused_before_the_run(tmp_path):
    with pytest.raises(SchemeError, match=r"cannot be written as awq"):
        compress(tmp_path / "out", formats=["gptq", "awq"], scheme="W4A16")
    assert not (tmp_path / "out").exists()


def test_a_format_that_is_named_twice_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="names one twice"):
        oneshot(
            tiny_llama(), "QuantizationModifier: {scheme: W4A16}", output_dir=tmp_path / "out", format=["gptq", "gptq"]
        )


def test_a_recipe_with_a_list_of_formats_is_written_and_read_again():
    recipe = read_recipe(f"format: [gptq, {GGUF}]\nmodifiers:\n  - QuantizationModifier: {{scheme: W4A16}}\n")

    assert read_recipe(write_recipe(recipe)).format == recipe.format


def test_the_command_takes_the_option_again_and_again(tmp_path):
    tiny_llama(hidden=128, dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    options = ["--scheme", "W4A16", "--format", "gptq", "--format", "compressed-tensors", "--quiet"]

    found = CliRunner().invoke(app, ["compress", str(tmp_path / "model"), *options, "--output", str(tmp_path / "out")])

    assert found.exit_code == 0, found.output
    assert (tmp_path / "out/gptq/model.safetensors").is_file()
    assert (tmp_path / "out/compressed-tensors/model.safetensors").is_file()


def test_the_summary_has_the_size_of_each(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    formats = ("--format", "compressed-tensors", "--format", "dense")
    options = ("--scheme", "W8A8", *formats, "--output", str(tmp_path / "out"))

    answer = CliRunner().invoke(app, ["compress", str(tmp_path / "model"), *options])

    assert answer.exit_code == 0, answer.stderr
    assert "size, compressed-tensors" in answer.stdout
    assert "bits per weight, dense" in answer.stdout
