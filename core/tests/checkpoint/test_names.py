"""What tensors are called on disk."""

import os
import re
from pathlib import Path

import pytest

from coldpress.checkpoint.names import checkpoint_names
from coldpress.experts import linear_experts, linearize_experts
from coldpress.testing.mixtures import MIXTURES, tiny_mixture
from coldpress.testing.models import tiny_conv1d, tiny_llama

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("build", [tiny_llama, tiny_conv1d])
def test_most_models_have_the_same_names_in_both_places(build):
    assert not checkpoint_names(build()).renamed


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_name_leads_there_and_back(kind):
    model = tiny_mixture(kind)
    linearize_experts(model)
    names = checkpoint_names(model)

    assert all(names.in_memory(names.on_disk(name)) == name for name in model.state_dict())
    for layer in linear_experts(model):
        scale = f"{layer}.1.down_proj.weight_scale"
        assert names.in_memory(names.on_disk(scale)) == scale


def test_a_parametrization_called_weight_keeps_its_name():
    names, name = checkpoint_names(tiny_llama()), "conv.parametrizations.weight.original0"

    assert names.on_disk(name) == names.in_memory(name) == name
    assert names.layer("conv.parametrizations.weight") == "conv.parametrizations.weight"


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "deepseek_v3", "olmoe"])
def test_names_on_disk_are_those_that_transformers_writes(kind, tmp_path):
    from coldpress.checkpoint import CheckpointReader

    model = tiny_mixture(kind)
    model.save_pretrained(tmp_path)
    linearize_experts(model)
    names = checkpoint_names(model)

    assert {names.on_disk(name) for name in model.state_dict()} == set(CheckpointReader(tmp_path).names())


def test_the_page_about_mixtures_runs(tmp_path):
    page = (ROOT / "docs/moe.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        for block in blocks:
            exec(compile(block, "docs/moe.md", "exec"), {})
    finally:
        os.chdir(before)

    assert (tmp_path / "compressed/config.json").is_file()
    assert (tmp_path / "half/config.json").is_file()
