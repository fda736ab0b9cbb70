"""Layers that engines fuse, found by running blocks."""

from torch import nn

from coldpress.dataflow.fused import FusedLayers, split_groups
from coldpress.experts import linearize_experts
from coldpress.schemes import preset
from coldpress.stage import find_layers
from coldpress.testing.mixtures import tiny_mixture
from coldpress.testing.models import tiny_conv1d, tiny_llama


def in_block(model, block):
    return [
        tuple(name.rpartition(".")[2] for name in group)
        for group in FusedLayers(model).groups
        if f".{block}." in group[0]
    ]


def test_they_are_the_layers_side_by_side_that_read_one_input():
    model = tiny_llama()

    assert in_block(model, 1) == [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")]
    assert len(FusedLayers(model).groups) == 4


def test_they_are_found_without_weights():
    assert in_block(tiny_llama().to("meta"), 0) == [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")]


def test_a_model_whose_layers_are_fused_already_has_none():
    assert FusedLayers(tiny_conv1d()).groups == ()


def test_names_do_not_matter():
    model = tiny_llama()
    for block in model.model.layers:
        block.mlp.up_proj, block.mlp.gate_proj = block.mlp.gate_proj, block.mlp.up_proj
        attention = block.self_attn
        attention.k_proj, attention.v_proj = attention.v_proj, attention.k_proj

    assert {frozenset(group) for group in in_block(model, 0)} == {
        frozenset({"q_proj", "k_proj", "v_proj"}),
        frozenset({"gate_proj", "up_proj"}),
    }


def test_every_layer_of_a_group_finds_the_others():
    model = tiny_llama()
    fused = FusedLayers(model)
    layers = {layer.name: layer for layer in find_layers(model.named_modules())}

    found = [other.name for other in fused.beside(layers["model.layers.1.mlp.up_proj"])]

    assert found == ["model.layers.1.mlp.gate_proj"]
    assert fused.beside(layers["model.layers.1.mlp.down_proj"]) == []


def test_the_two_halves_of_every_expert_are_fused_whether_a_token_reached_it_or_not():
    model = tiny_mixture("mixtral", experts=8)
    linearize_experts(model)

    groups = [group for group in FusedLayers(model).groups if group[0].startswith("model.layers.1.mlp.experts")]

    assert len(groups) == 8
    assert all(len(group) == 2 for group in groups)


def test_a_model_that_cannot_be_run_has_none(caplog):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4)])

        def forward(self, anything):
            raise ValueError("no")

    assert FusedLayers(Odd()).groups == ()
    assert "which layers share an input is not known" in caplog.text


def test_one_scheme_for_all_needs_no_run():
    model = tiny_llama()
    schemes = {layer.name: preset("W4A16") for layer in find_layers(model.named_modules())}

    assert split_groups(model, {name: one for name, one in schemes.items() if "layers" in name}, lambda: 1 / 0) == []
