"""Real architectures, tiny: `TYPES` in every run, all of them under `slow`; the table: `benchmarks/dataflow_zoo.py`."""

import pytest
import torch
import zoo

NAMES = """
    apertus arcee aria_text axk2 bamba biogpt bitnet bloom codegen cohere cohere2 cwm deepseek_v2 deepseek_v3 doge dots1
    ernie4_5 exaone4 falcon flex_olmo gemma gemma2 gemma3_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neo gpt_neox
    gpt_oss gptj granite granitemoe helium hunyuan_v1_dense lfm2 llama llama4_text longcat_flash mamba2 minicpm3
    ministral mistral mixtral mpt nanochat nemotron olmo olmo2 olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3
    qwen3_moe qwen3_next seed_oss smollm3 stablelm starcoder2 vaultgemma whisper xglm zamba
"""
TYPES = NAMES.split()


def check(model_type: str) -> None:
    """Probe a type and fold random scales into every pair of every block."""
    with zoo.time_limit(60):
        outcome = zoo.examine(model_type)

    assert outcome.probed == outcome.kinds, outcome.reasons
    assert sum(outcome.pairs) or model_type in ("xlm", "xlnet")
    assert all(c < 1e-8 for c in outcome.certificates.values())
    assert outcome.logits_change < 1e-6


@pytest.mark.parametrize("model_type", TYPES)
def test_folding_every_pair_leaves_the_logits_alone(model_type):
    check(model_type)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(set(zoo.model_types()) - set(TYPES)))
def test_folding_leaves_the_logits_of_all_other_types_alone(model_type):
    if not zoo.can_be_built(model_type):
        pytest.skip("transformers cannot build it so small")
    check(model_type)


def test_a_wrong_fold_would_be_seen_in_the_logits():
    model = zoo.build("llama")
    before = zoo.logits(model, zoo.token_batch())
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, 3] *= 1.01

    change = (zoo.logits(model, zoo.token_batch()) - before).abs().max() / before.abs().max()
    assert change > 1e-6
