"""Stage and Layer: which modules a pattern means, and weights that are [O, I] everywhere."""

import re
import string

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from coldpress.stage import Layer, Stage, class_names, find_layers, matches
from coldpress.testing.models import tiny_conv1d, tiny_llama

PARTS = st.text(string.ascii_lowercase + string.digits + "_", min_size=1, max_size=6)
NAMES = st.lists(PARTS, min_size=1, max_size=4).map(".".join)


class Special(nn.Linear):
    """A linear layer of a model's own."""


def stage_of(model):
    return Stage.whole(model)


def names(layers):
    return [layer.name for layer in layers]


@given(NAMES)
def test_a_name_means_itself(name):
    assert matches(name, name, ())


@given(NAMES, NAMES)
def test_a_name_means_nothing_else(name, other):
    assert matches(name, other, ("Linear",)) == (name == other)


@given(NAMES, NAMES)
def test_a_pattern_is_matched_from_the_start(prefix, rest):
    assert matches(f"re:{re.escape(prefix)}", prefix + rest, ())
    assert matches(f"re:.*{re.escape(rest)}$", prefix + rest, ())
    assert matches(f"re:{re.escape(rest)}", f"0{prefix}{rest}", ()) == f"0{prefix}{rest}".startswith(rest)


@given(NAMES)
def test_a_prefix_of_a_name_is_not_the_name(name):
    assert not matches(name[:-1] or "?", name, ("Linear",))


def test_a_class_name_means_what_extends_it():
    layer = Special(4, 4)

    assert all(matches(name, "x", class_names(layer)) for name in ("Special", "Linear", "Module"))
    assert not matches("Conv1D", "x", class_names(layer))


def test_conv1d_answers_to_linear_too():
    stage = stage_of(tiny_conv1d())
    block = [name for name in names(stage.layers(["Linear"])) if name.startswith("transformer.h.0.")]

    assert block == [f"transformer.h.0.{part}" for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    assert names(stage.layers(["Conv1D"])) == [name for name in names(stage.layers(["Linear"])) if name != "lm_head"]


def test_weights_are_out_by_in_also_where_they_are_stored_the_other_way():
    model = tiny_conv1d(hidden=64)
    (layer,) = stage_of(model).layers(["transformer.h.0.mlp.c_fc"])

    assert layer.module.weight.shape == (64, 256)
    assert layer.weight.shape == (256, 64)


@pytest.mark.parametrize("model", [tiny_llama, tiny_conv1d])
def test_the_weight_is_a_view(model):
    layer = stage_of(model()).layers(["Linear"])[0]
    before = layer.module.weight._version

    layer.weight.copy_(torch.full_like(layer.weight, 2.0))

    assert (layer.module.weight == 2).all()
    assert layer.module.weight._version > before
    assert not layer.weight.requires_grad


def test_layers_are_in_model_order_and_ignore_wins():
    stage = stage_of(tiny_llama(layers=2))
    every = names(stage.layers(["Linear"]))

    assert every == [name for name, module in tiny_llama(layers=2).named_modules() if isinstance(module, nn.Linear)]
    assert names(stage.layers(["Linear"], ["lm_head", "re:.*mlp"])) == [name for name in every if "self_attn" in name]
    assert stage.layers(["Linear"], ["Linear"]) == []
    assert names(stage.layers(["re:.*q_proj", "lm_head"])) == [*(n for n in every if "q_proj" in n), "lm_head"]


def test_embeddings_are_layers_and_norms_are_not():
    found = {layer.name: layer for layer in find_layers(tiny_llama().named_modules())}

    assert "Embedding" in found["model.embed_tokens"].classes
    assert not [name for name in found if "norm" in name]


def test_a_module_without_a_matrix_is_no_layer():
    modules = {"flat": nn.Linear(2, 2), "none": nn.Linear(2, 2)}
    modules["flat"].weight = nn.Parameter(torch.zeros(4))
    modules["none"].weight = None

    assert list(find_layers(modules.items())) == []


def test_a_layer_is_itself_and_no_other():
    module = nn.Linear(2, 2)

    assert Layer("a", module, ("Linear",)) != Layer("a", module, ("Linear",))
