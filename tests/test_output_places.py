"""Where a run writes, beside what it reads: nothing of the user's is lost, and what belongs to a model comes along."""

import json
import os
from pathlib import Path
from typing import ClassVar

import pytest
import transformers

from coldpress import model_free_ptq, oneshot
from coldpress.errors import ArgumentError, CheckpointError
from coldpress.plugin import hookimpl
from coldpress.testing.models import batches, tiny_llama, tiny_tokenizer
from coldpress_gptq import GPTQModifier

ROUNDING = "QuantizationModifier: {scheme: W8A16, group_size: -1, ignore: [lm_head]}"


_OUTPUT = {oneshot: "output_dir", model_free_ptq: "save_directory"}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "models" / "bf16"
    tiny_llama(layers=1).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"size":   3}')
    return folder


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def linked(source):
    (source.parent.parent / "link").symlink_to(source)
    return source.parent.parent / "link"


def older(source):
    """The folder above, which is a checkpoint too."""
    tiny_llama(layers=1).save_pretrained(source.parent)
    return source.parent


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", [lambda source: source, linked, older], ids=["itself", "link", "above"])
def test_an_output_in_place_of_the_model_is_refused(source, place, overwrite, in_memory):
    model = transformers.AutoModelForCausalLM.from_pretrained(source) if in_memory else str(source)
    output = place(source)
    before = files(source.parent)

    with pytest.raises(CheckpointError, match=r"folder of the model, .*bf16, which stays as it is"):
        oneshot(model, ROUNDING, output_dir=output, overwrite=overwrite, quiet=True)

    assert files(source.parent) == before


def test_the_folder_that_a_run_works_in_is_not_the_model_s_either(source):
    renamed = source.rename(source.with_name("x.partial"))

    with pytest.raises(CheckpointError, match="which stays as it is"):
        oneshot(str(renamed), ROUNDING, output_dir=source.with_name("x"), quiet=True)


def test_outputs_inside_of_the_model_s_folder_do_not_hold_each_other(source):
    for name in ("one", "two"):
        oneshot(str(source), ROUNDING, output_dir=source / name, quiet=True, return_model=False)

    assert (source / "two" / "preprocessor_config.json").is_file()
    assert not (source / "two" / "one").exists()


def test_a_log_in_the_output_is_refused_before_anything_is_written(source, tmp_path):
    with pytest.raises(ArgumentError, match="log_dir=.* lies in output_dir"):
        oneshot(str(source), ROUNDING, output_dir=tmp_path / "out", log_dir=tmp_path / "out" / "log")

    assert os.listdir(tmp_path) == ["models"]


def test_what_lies_beside_a_model_that_is_in_memory_comes_along(source, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    (source / "generation_config.json").write_text(json.dumps(model.generation_config.to_diff_dict(), indent=7))

    oneshot(model, ROUNDING, output_dir=tmp_path / "out", quiet=True)

    for name in ("preprocessor_config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_settings_of_generation_that_were_changed_in_memory_are_written(source, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    model.generation_config.temperature = 0.25

    oneshot(model, ROUNDING, output_dir=tmp_path / "out", quiet=True)

    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.25


def test_files_of_another_model_that_lie_where_this_one_came_from_are_left(source, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    (source / "config.json").write_text('{"model_type": "gpt2"}')

    oneshot(model, ROUNDING, output_dir=tmp_path / "out", quiet=True)

    assert not (tmp_path / "out" / "preprocessor_config.json").exists()


@pytest.mark.parametrize("part", ["config", "text_config"])
def test_a_dense_output_says_nothing_of_how_its_model_was_stored_before(tmp_path, part):
    model = tiny_llama(layers=1)
    config = model.config if part == "config" else transformers.LlamaConfig()
    config.quantization_config = transformers.FineGrainedFP8Config().to_dict()
    if part != "config":
        model.config.text_config = config

    oneshot(model, "MagnitudePruningModifier: {sparsity: 0.5, targets: [Linear]}", output_dir=tmp_path / "out")

    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()


class Overwriting(GPTQModifier):
    """Writes into a file of the model when the last block is compressed."""

    how: ClassVar = staticmethod(lambda folder: None)

    @hookimpl
    def finalize(self, state, stage):
        super().finalize(state, stage)
        if stage.name == "model.layers.0":
            self.how(Path(state.model.config._name_or_path))


def in_place(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"abcd")


def replaced(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "new").write_bytes(content)
    (folder / "new").rename(folder / "model.safetensors")


def removed(folder):
    (folder / "config.json").unlink()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", [in_place, replaced, removed])
def test_a_file_that_is_written_while_the_run_reads_it_is_told(source, tmp_path, monkeypatch, how, stream):
    monkeypatch.setattr(Overwriting, "how", staticmethod(how))
    recipe = Overwriting(scheme="W8A16", group_size=-1, ignore=["lm_head"])
    settings = {"dataset": batches(rows=2), "output_dir": tmp_path / "out", "stream_weights": stream, "quiet": True}

    with pytest.raises(CheckpointError, match="was written while this run read it"):
        oneshot(str(source), recipe, **settings)

    assert not (tmp_path / "out").exists()
    if how is replaced:  # by the same bytes
        oneshot(str(source), recipe, **settings)
        assert (tmp_path / "out").exists()
    if how is in_place:
        with pytest.raises(CheckpointError, match="model: .*model.safetensors changed|model: not the same as then"):
            oneshot(str(source), recipe, **settings)


@pytest.mark.parametrize("door", [oneshot, model_free_ptq], ids=["oneshot", "model_free"])
def test_a_folder_that_is_named_like_the_file_of_another_format_is_refused(source, tmp_path, door):
    with pytest.raises(ArgumentError, match="named like a file of the format 'gguf': pass format='gguf'"):
        door(str(source), recipe=ROUNDING, **{_OUTPUT[door]: tmp_path / "model.gguf"})

    assert [path.name for path in tmp_path.iterdir()] == ["models"]


@pytest.mark.parametrize("name", ["llama-3.1", "llama.gptq", "llama.awq", "llama.dense"])
def test_folders_may_be_named_after_what_is_written_as_safetensors_files(source, tmp_path, name):
    oneshot(str(source), ROUNDING, output_dir=tmp_path / name, return_model=False)

    assert (tmp_path / name / "model.safetensors").exists()
