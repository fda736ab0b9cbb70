"""What llama.cpp computes from our files, beside what transformers computes from the same weights."""

import pytest
import torch
import transformers
from llama_cpp import Engine, divergence

from coldpress import oneshot
from coldpress.testing.models import VOCABULARY, batches, filled, logits, tiny_llama, tiny_tokenizer

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
GEMMA = {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 8, "tie_word_embeddings": True}
FAMILIES = {
    "llama": ("Llama", {"head_dim": 64}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama yarn": ("Llama", {"rope_parameters": YARN}),
    "llama bias": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 64}),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "head_dim": 64,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 256,
            "norm_topk_prob": True,
        },
    ),
    "gemma2": ("Gemma2", GEMMA),
    "gemma3": ("Gemma3", GEMMA),
    "gpt_oss": (
        "GptOss",
        {
            "head_dim": 64,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "rope_parameters": {**YARN, "truncate": True},
        },
    ),
    "phi3": ("Phi3", {"sliding_window": None}),
    "granite": (
        "Granite",
        {"attention_multiplier": 0.1, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 3.0},
    ),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4}),
    "olmo2": ("Olmo2", {}),
    "starcoder2": ("Starcoder2", {"sliding_window": None}),
}


SCHEMES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4A16", "NVFP4A16", "Q4_K", "Q5_K", "Q6_K", "W4A16"]


def _some_fast(names, fast):
    """All of them, of which a few run at every change and the rest with the slow tests."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def tiny(family):
    name, more = FAMILIES[family]
    text = {**TEXT, **more}
    kind = f"{name}TextConfig" if name == "Gemma3" else f"{name}Config"
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, kind)(**text))
    model.config._name_or_path = "tiny"  # llama.cpp looks for the tokens of Phi-3 where a name says so
    return filled(model, torch.float32, 0)


def prompt_for(model):
    """Tokens after which an ASCII letter is likeliest, for else the engine has no text, and tells no probabilities."""
    (data,) = batches(rows=8, length=24, batch_size=8)
    likeliest = logits(model, [data])[:, 12:].argmax(-1)  # [rows, T]
    row, place = ((likeliest > 2) & (likeliest < 97)).nonzero()[-1].tolist()
    return data["input_ids"][row, : 13 + place].tolist()


def log_probabilities(model, tokens):
    return logits(model, [{"input_ids": torch.tensor([tokens])}])[0, -1].log_softmax(0)


def export(folder, model, scheme, *, size="", ignore="[lm_head]", tokenizer=None):
    recipe = f"""
format: {{gguf: {{pre_tokenizer: gpt-2}}}}
modifiers:
  - QuantizationModifier: {{scheme: {scheme}, ignore: {ignore}{size}}}
"""
    oneshot(model, recipe, output_dir=folder, tokenizer=tokenizer or tiny_tokenizer(), quiet=True)
    return folder / "model.gguf"


@pytest.mark.parametrize("family", _some_fast(FAMILIES, {"llama3", "mixtral", "gemma3"}))
def test_an_architecture_is_computed_as_by_transformers(tmp_path, family):
    model = tiny(family)
    experts = ', "re:.*(gate|router)$"' if hasattr(model.config, "num_experts_per_tok") else ""

    engine = Engine(export(tmp_path / "out", model, "Q8_0", ignore=f"[lm_head{experts}]"))

    tokens = prompt_for(model)
    ours, found = log_probabilities(model, tokens), engine.log_probabilities(tokens, VOCABULARY)
    assert divergence(ours, found) < 4e-3  # inputs are rounded to 8 bits there
    assert ours[found.argmax()] > ours.max() - 0.05  # what is likeliest there is so here, but for ties


@pytest.mark.parametrize("scheme", _some_fast(SCHEMES, {"Q4_0", "Q4_K", "NVFP4A16"}))
def test_a_type_stands_for_our_weights(tmp_path, scheme):
    model = tiny_llama(hidden=256)

    engine = Engine(export(tmp_path / "out", model, scheme))

    tokens = prompt_for(model)
    ours, found = log_probabilities(model, tokens), engine.log_probabilities(tokens, VOCABULARY)
    before = log_probabilities(tiny_llama(hidden=256), tokens)
    assert divergence(ours, found) < 2e-3
    if scheme != "Q6_K":  # which costs as little as the rounding of inputs
        assert divergence(ours, found) < 0.2 * divergence(ours, before)


def test_a_split_file_is_opened_by_its_first_part(tmp_path):
    model = tiny_llama(hidden=128)
    recipe = """
format: {gguf: {pre_tokenizer: gpt-2, split_max_size: 100000}}
modifiers:
  - QuantizationModifier: {scheme: Q8_0, ignore: [lm_head]}
"""
    oneshot(model, recipe, output_dir=tmp_path / "out", tokenizer=tiny_tokenizer(), quiet=True)

    engine = Engine(min((tmp_path / "out").glob("*.gguf")))

    tokens = prompt_for(model)
    assert divergence(log_probabilities(model, tokens), engine.log_probabilities(tokens, VOCABULARY)) < 2e-3
