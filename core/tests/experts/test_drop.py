"""Experts are dropped: what stays computes what it did, and is read from where it was."""

from functools import partial

import pytest
import torch

from coldpress.errors import ModelError
from coldpress.experts import drop_experts, linear_experts, linearize_experts
from coldpress.models.auto import build_outline
from coldpress.models.dense import folder_checkpoint
from coldpress.models.skeleton import stream_model
from coldpress.testing.mixtures import tiny_mixture

KEPT = [1, 2, 4, 6]


def dropped(model, kept=KEPT):
    names = list(linear_experts(model))
    return drop_experts(model, dict.fromkeys(names, kept), partial(build_outline, type(model)))


@pytest.mark.parametrize("kind", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_router_rows_experts_and_configuration_are_those_that_stay(kind):
    model = tiny_mixture(kind, experts=8)
    linearize_experts(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    found = dropped(model)

    after = model.state_dict()
    assert found.rows
    for name, rows in found.rows.items():
        assert torch.equal(after[name], before[name][KEPT])
        assert rows.kept == tuple(KEPT)
    for new, old in found.renamed.items():
        assert torch.equal(after[new], before[old])
    assert not any(f".experts.{number}." in name for name in after for number in range(4, 8))
    small = build_outline(type(model), model.config).state_dict()
    assert all(small[name].shape == tensor.shape for name, tensor in after.items() if name in small)


def test_layers_that_would_differ_are_refused():
    model = tiny_mixture("mixtral", experts=8)
    linearize_experts(model)
    kept = dict(zip(linear_experts(model), (KEPT, KEPT[:3]), strict=True))

    with pytest.raises(ModelError, match="one number of experts for all layers"):
        drop_experts(model, kept, partial(build_outline, type(model)))


def test_an_expert_that_is_called_out_of_turn_reads_its_own_weights(tmp_path):
    model = tiny_mixture("qwen3_moe", experts=8)
    model.save_pretrained(tmp_path)
    fused = model.model.layers[0].mlp.experts.down_proj.detach()  # [E, H, M]
    weights = stream_model(folder_checkpoint(str(tmp_path), tmp_path), dtype="auto", device=torch.device("cpu"))

    with torch.no_grad(), weights:
        weights.follow(dropped(weights.model))
        experts = next(iter(linear_experts(weights.model).values()))
        for expert in experts.experts():
            expert(torch.randn(1, 64))

    for expert, old in zip(experts.experts(), KEPT, strict=True):
        assert torch.equal(expert.down_proj.weight, fused[old])
