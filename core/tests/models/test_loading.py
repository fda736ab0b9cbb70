"""Models and tokenizers from wherever they are."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from coldpress.errors import ArgumentError, CheckpointError, ModelError
from coldpress.models import load_model, load_tokenizer, need_tokenizer
from coldpress.models.dense import folder_checkpoint
from coldpress.testing.models import tiny_llama, tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama in a folder."""
    path = tmp_path / "tiny-llama"
    tiny_llama(hidden=64).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def no_hub(monkeypatch):
    """A machine without network."""

    monkeypatch.setattr("coldpress.models.loading.hub_is_reachable", lambda: False)
    monkeypatch.setattr("coldpress.models.hub.hub_is_reachable", lambda: False)


def test_a_folder_gives_back_the_weights_that_were_saved(folder):
    model = load_model(folder, device="cpu")

    expected = tiny_llama(hidden=64).state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("auto", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("half", torch.float16),
        ("full", torch.float32),
        (torch.float16, torch.float16),
    ],
)
def test_precision_is_the_dtype_of_every_weight(folder, name, dtype):
    model = load_model(str(folder), dtype=name, device="cpu")

    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_an_unknown_precision_suggests_a_near_one(folder):
    with pytest.raises(ArgumentError, match="did you mean 'bfloat16'"):
        load_model(folder, dtype="bfloat61")


def test_a_model_in_memory_is_returned_as_it_is():
    model = tiny_llama(hidden=64).train()

    assert load_model(model) is model
    assert model.training


def test_an_object_that_is_no_model_is_told():
    with pytest.raises(ArgumentError, match="got dict"):
        load_model({"model": 1})


def test_a_path_that_does_not_exist_names_its_neighbours(folder):
    with pytest.raises(ModelError, match=r"is not there.*did you mean .*tiny-llama"):
        load_model(str(folder.parent / "tiny-lama"))


def test_a_name_that_is_nowhere_says_what_was_tried(no_hub):
    with pytest.raises(ModelError, match=r"no folder of this name exists.*cache"):
        load_model("smolm2")


def test_a_folder_without_a_model_names_the_one_inside(folder):
    with pytest.raises(ModelError, match=r"without config.json.*tiny-llama does"):
        load_model(str(folder.parent))


@pytest.mark.parametrize("keep", [0.5, 0.001])
def test_a_truncated_file_is_named(folder, keep):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])

    with pytest.raises(CheckpointError, match="model.safetensors"):
        load_model(folder)


def test_missing_weights_are_told(folder):
    (folder / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match="model.safetensors is missing"):
        load_model(folder)


def test_a_missing_tensor_is_an_error_and_never_random(folder):
    model = tiny_llama(hidden=64)
    weights = model.state_dict()
    del weights["model.norm.weight"]
    model.save_pretrained(folder, state_dict=weights)

    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        load_model(folder)


@pytest.mark.parametrize(
    ("text", "error"), [("{broken", CheckpointError), ("[]", CheckpointError), ('{"model_type": "nosuch"}', ModelError)]
)
def test_a_broken_configuration_is_told(folder, text, error):
    (folder / "config.json").write_text(text)

    with pytest.raises(error):
        load_model(folder)


def test_a_model_of_another_method_is_told_with_the_method(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "nosuch"}}))

    with pytest.raises(ModelError, match=r"already compressed, with 'nosuch'.*start from the dense model"):
        load_model(folder)


def test_the_tokenizer_lies_beside_the_model(folder):
    tokenizer = load_tokenizer(folder)

    assert tokenizer("abc").input_ids == tiny_tokenizer()("abc").input_ids
    assert load_tokenizer(tokenizer) is tokenizer
    assert len(load_tokenizer(load_model(folder))) == len(tokenizer)
    assert len(load_tokenizer(None, load_model(folder))) == len(tokenizer)


def test_no_tokenizer_is_an_error_only_for_who_needs_one(folder):
    for path in folder.glob("*token*"):
        path.unlink()

    assert load_tokenizer(folder) is None
    assert load_tokenizer(tiny_llama(hidden=64)) is None
    with pytest.raises(ModelError, match="calibration needs a tokenizer"):
        need_tokenizer(None, "calibration")


def test_a_tokenizer_that_is_named_and_not_there_is_told(folder, no_hub):
    with pytest.raises(ModelError, match="is not there"):
        load_tokenizer(str(folder / "elsewhere" / "still"))


def test_loading_is_logged_in_one_line(folder, caplog):
    with caplog.at_level(logging.INFO, logger="coldpress.models"):
        load_model(folder, device="cpu")

    assert [record.message for record in caplog.records] == [f"loaded {folder}: LlamaForCausalLM in torch.float32"]


def test_code_of_a_model_s_own_is_named_before_transformers_asks_for_it(folder):
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.MineConfig"}}
    (folder / "config.json").write_text(json.dumps({**config, **own}))

    with pytest.raises(ModelError, match=r"'configuration_mine.MineConfig'.*trust_remote_code_model=True"):
        load_model(folder, device="cpu")


def test_a_class_that_is_named_without_a_list_is_that_class(folder, caplog):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": "LlamaForCausalLM"}))

    assert type(load_model(folder, device="cpu")).__name__ == "LlamaForCausalLM"
    assert "does not have" not in caplog.text


def test_tensors_that_lie_where_the_index_does_not_say_are_told(tmp_path, caplog):
    tiny_llama(hidden=64).save_pretrained(tmp_path, max_shard_size="100KB")
    name = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]["model.norm.weight"]
    other = next(file for file in sorted(tmp_path.glob("*.safetensors")) if file.name != name)
    save_file({**load_file(other), "model.norm.weight": torch.full((64,), 7.0)}, other, {"format": "pt"})

    found = folder_checkpoint("mine", tmp_path).weights

    assert not found.read("model.norm.weight").eq(7).any()
    assert f"the first is model.norm.weight in {other}" in caplog.text


def test_a_folder_that_holds_a_tokenizer_alone_is_one(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "alone")

    assert len(load_tokenizer(str(tmp_path / "alone"))) == len(tiny_tokenizer())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="is a folder without config.json"):
        load_tokenizer(str(tmp_path / "empty"))
