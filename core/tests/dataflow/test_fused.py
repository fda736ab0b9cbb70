"""Layers that engines fuse, found by running blocks."""

from torch import nn

from coldpress.dataflow.fused import FusedLayers, named_groups, split_groups
from coldpress.experts import linearize_experts
from coldpress.schemes import preset
from coldpress.stage import find_layers
from coldpress.testing.families import tiny_family
from coldpress.testing.mixtures import tiny_mixture
from coldpress.testing.models import tiny_conv1d, tiny_llama


def _last(group):
    return tuple(name.rpartition(".")[2] for name in group)


def in_block(model, block):
    return [_last(group) for group in FusedLayers(model).groups if f".{block}." in group[0]]


def test_they_are_the_layers_side_by_side_that_read_one_input():
    model = tiny_llama()

    assert in_block(model, 1) == [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")]
    assert len(FusedLayers(model).groups) == 4


def test_they_are_found_without_weights():
    assert in_block(tiny_llama().to("meta"), 0) == [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")]


def test_a_model_whose_layers_are_fused_already_has_none():
    assert FusedLayers(tiny_conv1d()).groups == ()


def test_layers_that_engines_keep_apart_are_two_though_they_read_one_input():
    attention = nn.Module()
    for name in ("in_proj_qkvz", "in_proj_ba"):
        attention.add_module(name, nn.Linear(4, 4))
    indexer = nn.Module()
    for name in ("wk", "weights_proj"):
        indexer.add_module(name, nn.Linear(4, 4))

    assert named_groups(nn.ModuleDict({"linear_attn": attention, "indexer": indexer})) == ()


def test_of_four_projections_each_pair_is_one():
    attention = nn.Module()
    for name in ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"):
        attention.add_module(name, nn.Linear(4, 4))

    assert named_groups(attention) == (("in_proj_qkv", "in_proj_z"), ("in_proj_b", "in_proj_a"))


def test_queries_of_cross_attention_read_another_tensor_than_keys_and_values():
    model = tiny_family("bart")

    groups = FusedLayers(model).groups

    decoder = [_last(group) for group in groups if ".decoder.layers.0.encoder_attn." in group[0]]
    assert decoder == [("k_proj", "v_proj")]
    assert [_last(group) for group in groups if ".decoder.layers.0.self_attn." in group[0]] == [
        ("q_proj", "k_proj", "v_proj")
    ]


def test_the_layers_of_a_vision_tower_are_fused_too():
    groups = FusedLayers(tiny_family("llava")).groups

    assert ("q_proj", "k_proj", "v_proj") in [_last(group) for group in groups if "vision_tower" in group[0]]


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


def test_where_a_model_cannot_be_run_names_decide():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleDict({"q_proj": nn.Linear(4, 4), "k_proj": nn.Linear(4, 4)})])

        def forward(self, anything):
            raise ValueError("no")

    assert FusedLayers(Odd()).groups == (("layers.0.q_proj", "layers.0.k_proj"),)


def test_one_scheme_for_all_needs_no_run():
    model = tiny_llama()
    schemes = {layer.name: preset("W4A16") for layer in find_layers(model.named_modules())}

    assert split_groups(model, {name: one for name, one in schemes.items() if "layers" in name}, lambda: 1 / 0) == []
