"""Models and tokenizers from GGUF files; the oracle is transformers' own reading."""

import json

import pytest
import torch
from gguf_files import write_llama

from coldpress import CheckpointError, load_model, load_tokenizer
from coldpress.testing.models import tiny_llama
from coldpress_gguf.file import GgufFile
from coldpress_gguf.llama import is_plain_llama
from coldpress_gguf.source import load_by_transformers


@pytest.fixture
def file(tmp_path):
    return write_llama(tmp_path / "tiny.gguf", tiny_llama(hidden=64))


def test_unquantized_blocks_give_the_weights_that_were_written(tmp_path):
    expected = tiny_llama(hidden=64).state_dict()

    model = load_model(write_llama(tmp_path / "tiny.gguf", tiny_llama(hidden=64), kind="F32"), dtype="float32")

    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1", "Q5_0"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_llama_is_read_as_transformers_reads_it(tmp_path, kind, tied):
    model = tiny_llama(hidden=64, tied=tied)
    file = write_llama(tmp_path / "tiny.gguf", model, kind=kind, drop={"lm_head.weight"} if tied else ())

    ours = load_model(file, dtype="float32")

    theirs = load_by_transformers(file, torch.float32)
    assert is_plain_llama(GgufFile(file))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(weight, theirs.state_dict()[name]) for name, weight in ours.state_dict().items())
    for name in ("hidden_size", "num_key_value_heads", "rope_parameters", "tie_word_embeddings", "bos_token_id"):
        assert getattr(ours.config, name) == getattr(theirs.config, name), name
    assert ours.config.rms_norm_eps == 1e-5


def test_a_llama_with_settings_that_we_do_not_know_goes_through_transformers(tmp_path):
    file = write_llama(tmp_path / "tiny.gguf", tiny_llama(hidden=64), settings=[("llama.attention.clamp_kqv", 1.0)])

    assert not is_plain_llama(GgufFile(file))
    assert load_model(file, dtype="float32").config.hidden_size == 64


def test_nothing_recalls_that_the_model_came_from_gguf(file, tmp_path):
    model = load_model(file)

    model.save_pretrained(tmp_path / "saved")

    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "quantization_config" not in config
    assert str(tmp_path) not in json.dumps(config)
    assert config["model_type"] == "llama"
    assert config["dtype"] == "bfloat16"
    assert not getattr(model, "is_quantized", False)
    assert not hasattr(model, "hf_quantizer")
    assert model.generation_config.eos_token_id == 2
    assert torch.equal(load_model(tmp_path / "saved").lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("pre", ["smollm", "starcoder", "refact"])
def test_digits_are_split_one_by_one(tmp_path, pre):
    tokenizer = load_tokenizer(write_llama(tmp_path / "tiny.gguf", tiny_llama(hidden=64), pre=pre))

    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12\n\n7")

    assert [piece for piece, _ in pieces] == ["a", "ĠĠ", "1", "2", "ĊĊ", "7"]
    assert len(tokenizer("1234", add_special_tokens=False).input_ids) == 4


def test_the_tokenizer_has_the_special_tokens_and_the_template_of_the_file(file):
    tokenizer = load_tokenizer(file)

    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<s>", "</s>")
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "hello"
    assert tokenizer.decode(tokenizer("Ünïcode 12 text").input_ids, skip_special_tokens=True) == "Ünïcode 12 text"
    assert tokenizer.model_max_length == tiny_llama(hidden=64).config.max_position_embeddings
    assert tokenizer("x</s>").input_ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("share", [0.0001, 0.02, 0.9])
def test_a_truncated_file_is_named(file, share):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])

    with pytest.raises(CheckpointError, match=r"tiny\.gguf"):
        load_model(file)


def test_a_file_with_a_missing_tensor_is_told(tmp_path):
    file = write_llama(tmp_path / "tiny.gguf", tiny_llama(hidden=64), drop={"model.layers.1.mlp.up_proj.weight"})

    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj"):
        load_model(file)


def test_a_file_that_is_something_else_is_told(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK" * 100)

    with pytest.raises(CheckpointError, match="not a GGUF file"):
        load_model(tmp_path / "x.gguf")


def test_a_folder_with_one_gguf_file_is_that_file(file):
    assert load_model(file.parent, dtype="float32").config.hidden_size == 64
