"""Models and tokenizers from GGUF files; the oracle is transformers' own reading."""

import json

import pytest
import torch

from coldpress.errors import CheckpointError, ModelError
from coldpress.models import load_model, load_tokenizer
from coldpress.models.embedded import embedded_file
from coldpress.models.gguf import _is_plain_llama, _load_by_transformers
from coldpress.models.gguf_file import GgufFile
from coldpress.testing.models import VOCABULARY, tiny_llama, tiny_tokenizer

gguf = pytest.importorskip("gguf")

HF_TO_GGUF = {
    "embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def _gguf_name(name):
    part = next(new for old, new in HF_TO_GGUF.items() if f"{old}.weight" in name)
    return f"blk.{name.split('.')[2]}.{part}.weight" if ".layers." in name else f"{part}.weight"


def _write(path, model, *, kind="Q8_0", drop=(), settings=(), pre="smollm"):
    """A GGUF file of a Llama as llama.cpp's own converter writes it."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    for key, value in settings:
        writer.add_float32(key, value)
    tokens = list(tiny_tokenizer().get_vocab())
    tokens.sort(key=tiny_tokenizer().get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (VOCABULARY - 3))
    writer.add_token_merges([])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, weight in model.state_dict().items():
        if name in drop:
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:  # llama.cpp keeps the two dimensions of a rotation side by side
            weight = weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        array = weight.float().numpy()
        type_ = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        writer.add_tensor(_gguf_name(name), gguf.quants.quantize(array, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path):
    return _write(tmp_path / "tiny.gguf", tiny_llama(hidden=64))


def test_unquantized_blocks_give_the_weights_that_were_written(tmp_path):
    expected = tiny_llama(hidden=64).state_dict()

    model = load_model(_write(tmp_path / "tiny.gguf", tiny_llama(hidden=64), kind="F32"), dtype="float32")

    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1", "Q5_0"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_llama_is_read_as_transformers_reads_it(tmp_path, kind, tied):
    model = tiny_llama(hidden=64, tied=tied)
    file = _write(tmp_path / "tiny.gguf", model, kind=kind, drop={"lm_head.weight"} if tied else ())

    ours = load_model(file, dtype="float32")

    theirs = _load_by_transformers(GgufFile(file), torch.float32)
    assert _is_plain_llama(GgufFile(file))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(weight, theirs.state_dict()[name]) for name, weight in ours.state_dict().items())
    for name in ("hidden_size", "num_key_value_heads", "rope_parameters", "tie_word_embeddings", "bos_token_id"):
        assert getattr(ours.config, name) == getattr(theirs.config, name), name
    assert ours.config.rms_norm_eps == 1e-5


def test_a_llama_with_settings_that_we_do_not_know_goes_through_transformers(tmp_path):
    file = _write(tmp_path / "tiny.gguf", tiny_llama(hidden=64), settings=[("llama.attention.clamp_kqv", 1.0)])

    assert not _is_plain_llama(GgufFile(file))
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
    tokenizer = load_tokenizer(_write(tmp_path / "tiny.gguf", tiny_llama(hidden=64), pre=pre))

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
    file = _write(tmp_path / "tiny.gguf", tiny_llama(hidden=64), drop={"model.layers.1.mlp.up_proj.weight"})

    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj"):
        load_model(file)


def test_a_file_that_is_something_else_is_told(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK" * 100)

    with pytest.raises(CheckpointError, match="not a GGUF file"):
        load_model(tmp_path / "x.gguf")


def test_a_folder_with_one_gguf_file_is_that_file(file):
    assert load_model(file.parent, dtype="float32").config.hidden_size == 64


@pytest.mark.slow
@pytest.mark.demo
def test_smollm2_speaks_and_counts_digits_one_by_one():
    try:
        embedded_file("smollm2")
    except ModelError as error:
        pytest.skip(str(error))

    model, tokenizer = load_model("smollm2"), load_tokenizer("smollm2")

    assert tokenizer.convert_ids_to_tokens(tokenizer("1234").input_ids) == ["1", "2", "3", "4"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert "<|im_start|>assistant" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert model.dtype == torch.bfloat16
    ids = tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in tokenizer.decode(model.generate(**ids, max_new_tokens=3, do_sample=False)[0])
