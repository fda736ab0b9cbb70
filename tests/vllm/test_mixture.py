"""Real vLLM serves a mixture that REAP has left half of its experts, and says of it what our model in memory says.

Its kernels of quantized experts for x86 want AMX; where a processor has none, experts are left as they are here, and
what is quantized is the rest.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import served
from served_cases import by_127

from coldpress import load_model, oneshot
from coldpress.modifiers import QuantizationModifier, REAPPruningModifier
from coldpress.testing.models import batches, filled, tiny_tokenizer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

IGNORE = {"the rest in W8A8": ["lm_head", "re:.*experts.*"], "all in W8A8": ["lm_head"]}


def mixture(folder):
    """A Qwen3-MoE of sixteen experts whose heads and widths vLLM takes."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=256,
        intermediate_size=256,
        moe_intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=16,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        tie_word_embeddings=False,
        max_position_embeddings=640,
    )
    filled(Qwen3MoeForCausalLM(config), torch.float32, 0).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    home = tmp_path_factory.mktemp("mixture")
    source, found, requests = mixture(home / "source"), [], []
    tokens = torch.randint(3, len(tiny_tokenizer()), (128,), generator=torch.Generator().manual_seed(0)).tolist()
    for number, ignore in enumerate(IGNORE.values()):
        folder = home / f"out-{number}"
        steps = [REAPPruningModifier(sparsity=0.5), QuantizationModifier(scheme="W8A8", ignore=ignore)]
        oneshot(str(source), steps, dataset=batches(rows=16), output_dir=folder, quiet=True)
        ours = load_model(folder, dtype=torch.float32, device="cpu")
        by_127(ours)
        found.append(served.log_probabilities(ours, tokens))
        requests.append(served.request(folder, tokens, dtype="float32"))
        assert ours.config.num_experts == 8
    return dict(zip(IGNORE, zip(found, served.ask(requests), strict=True), strict=True))


def test_half_of_the_experts_are_served_as_ours_say(answers):
    ours, said = answers["the rest in W8A8"]

    assert "logprobs" in said, said
    difference = (torch.tensor(said["logprobs"]) - ours).abs()
    assert difference.mean() < 1e-2
    assert difference.median() < 1e-3


def test_quantized_experts_are_served_too_or_want_amx(answers):
    ours, said = answers["all in W8A8"]

    if "refused" in said:
        assert "amx" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"), said
        return
    assert (torch.tensor(said["logprobs"]) - ours).abs().median() < 1e-3
