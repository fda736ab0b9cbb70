"""What `ignore` means, and what of it matches nothing."""

import json
import logging

import pytest
import torch
from torch import nn

from coldpress import oneshot
from coldpress.errors import ModelError, TargetError
from coldpress.experts import linearize_experts
from coldpress.experts.router import router_layers
from coldpress.modifier import Modifier
from coldpress.run.ignore import head_layers, ignore_problems, with_heads
from coldpress.testing.families import tiny_family
from coldpress.testing.mixtures import tiny_mixture
from coldpress.testing.models import tiny_llama
from coldpress.testing.rounding import Rounding


def problems(model, *patterns, beside=()):
    return ignore_problems([Modifier(ignore=list(patterns))], model, beside)


def test_a_misspelt_name_is_an_error_with_near_names():
    (problem,) = problems(tiny_llama(), "lm_haed")

    assert problem.startswith("Modifier: ignore has 'lm_haed', which matches no layer; the model has, for example,")
    assert "'lm_head'" in problem


def test_a_misspelt_part_of_a_pattern_is_an_error():
    (problem,) = problems(tiny_llama(), r"re:.*mlp\.down_prj$")

    assert "'model.layers.0.mlp.down_proj'" in problem


def test_a_pattern_that_begins_too_late_is_told_how_it_would_match():
    (problem,) = problems(tiny_family("qwen2_5_vl"), "re:visual.*")

    assert "'re:.*visual.*' matches 'model.visual." in problem


def test_a_module_that_only_holds_layers_is_no_layer():
    (problem,) = problems(tiny_llama(), "model.layers.0.mlp")

    assert "it holds layers and is none; 're:model.layers.0.mlp.*' matches 'model.layers.0.mlp.gate_proj'" in problem


def test_a_pattern_of_another_model_is_none_that_is_misspelt():
    assert problems(tiny_llama(), "re:.*.block_sparse_moe.router.layer") == []
    assert len(problems(tiny_llama(), "re:.*layer.0.*.gate_prj")) == 1


def test_a_module_whose_layers_are_ignored_by_another_pattern_is_no_mistake():
    assert problems(tiny_llama(), "LlamaMLP", "re:.*mlp.*") == []
    assert problems(tiny_family("qwen2_5_vl"), "re:visual.*", "re:model.visual.*") == []
    assert len(problems(tiny_family("qwen2_5_vl"), "re:visual.*", "re:model.visual.blocks.0.*")) == 1


@pytest.mark.parametrize("pattern", ["model.lm_head", "LM_HEAD", "lm_head.weight", "re:.*lm_head.weight$"])
def test_the_head_by_a_name_that_it_does_not_have_is_no_custom(pattern):
    (problem,) = problems(tiny_llama(), pattern)

    assert "the model has, for example, 'lm_head'" in problem


@pytest.mark.parametrize("pattern", ["LlamaRMSNorm", "re:.*mlp", "model.norm", "Embedding", "mtp.0.weight"])
def test_whatever_has_weights_may_be_ignored(pattern):
    assert problems(tiny_llama(), pattern, beside=["mtp.0.weight"]) == []


CUSTOMARY = ["re:.*vision_tower.*", "re:.*multi_modal_projector.*", "re:.*visual.*", "re:vision_model.*", "re:.*mtp.*"]


@pytest.mark.parametrize("pattern", ["lm_head", "re:.*lm_head", "re:.*router$", "re:.*mlp.gate$", *CUSTOMARY])
def test_what_recipes_ignore_by_custom_is_a_warning(pattern, caplog):
    assert problems(tiny_family("bert"), pattern) == []
    assert f"{pattern!r} matches no layer of a BertModel" in caplog.text


def test_a_run_that_ignores_nothing_does_not_begin(tmp_path):
    with pytest.raises(TargetError, match="ignore has 'lm_haed'"):
        oneshot(tiny_llama(), Rounding(scheme="W8A16", ignore=["lm_haed"]), output_dir=tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "head"),
    [("bert_masked", "cls.predictions.decoder"), ("llama_classifier", "score"), ("whisper", "proj_out")],
)
def test_lm_head_is_the_head_whatever_it_is_called(kind, head):
    model = tiny_family(kind)

    assert head_layers(model) == [head]
    assert with_heads([Modifier(ignore=["lm_head", "re:.*mlp"])], model)[0].ignore == ["re:.*mlp", head]


def test_a_head_that_has_the_name_stays_named():
    modifier = Modifier(ignore=["lm_head"])

    assert with_heads([modifier], tiny_family("llava")) == [modifier]
    assert with_heads([modifier], nn.Linear(2, 2)) == [modifier]


@pytest.mark.parametrize(
    ("kind", "last"), [("qwen2_moe", {"shared_expert_gate"}), ("jetmoe", {"layer"}), ("mixtral", set())]
)
def test_routers_are_found_beside_experts(kind, last):
    model = tiny_mixture(kind)
    linearize_experts(model)

    assert {name.rpartition(".")[2] for name in router_layers(model)} == last


def test_a_router_that_is_quantized_is_named(caplog):
    with caplog.at_level(logging.WARNING):
        oneshot(tiny_mixture("qwen2_moe"), Rounding(scheme="W8A16", group_size=-1, ignore=["lm_head"]))

    assert "the first is model.layers.0.mlp.shared_expert_gate; engines have no place" in caplog.text


class Joined(nn.Module):
    """Experts of one tensor that are called with what nothing explains."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, width, width) / width**0.5)

    def forward(self, x):
        return x @ self.weight.sum(0)


def test_experts_of_one_joint_tensor_a_module_are_refused_unless_they_are_ignored(tmp_path):
    def model():
        found = tiny_mixture("mixtral")
        for block in found.model.layers:
            block.joined = Joined(64)
        return found

    with pytest.raises(ModelError, match=r"ignore=\['Joined'\]"):
        oneshot(model(), Rounding(scheme="W8A16", group_size=-1, ignore=["lm_head"]))

    ignore = ["lm_head", "Joined"]
    oneshot(model(), Rounding(scheme="W8A16", group_size=-1, ignore=ignore), output_dir=tmp_path / "out")
    lines = json.loads((tmp_path / "out/report.json").read_text())["layers"]
    assert sum("joint tensor of their own" in (line["reason"] or "") for line in lines) == 2
