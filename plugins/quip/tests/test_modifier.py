"""QuIPModifier: the function is kept, weights become incoherent, bad input."""

import pytest
import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaMLP

from coldpress import ModelError, RecipeError, TargetError
from coldpress.attachment import attachments_on
from coldpress.plugin import State
from coldpress.recipe import Recipe
from coldpress.run.job import Job
from coldpress.testing.models import batches, logits, tiny_conv1d, tiny_llama
from coldpress.testing.rounding import Rounding
from coldpress.testing.trial import Parts
from coldpress_quip import QuIPModifier

LAYER = "model.layers.0.mlp.down_proj"
W4 = {"scheme": "W4A16", "group_size": -1}


def run(model, *modifiers):
    state = State(model=model, batches=batches(rows=2, batch_size=2))
    Job(recipe=Recipe(modifiers), state=state, pipeline=Parts()).run()
    return state


@pytest.mark.parametrize("build", [tiny_llama, tiny_conv1d], ids=lambda f: f.__name__)
@pytest.mark.parametrize("rotations", [["v"], ["u"], ["v", "u"]], ids=str)
def test_the_function_is_kept(build, rotations):
    model, data = build().double(), batches(rows=2)
    before = logits(model, data)

    run(model, QuIPModifier(rotations=rotations))

    assert (logits(model, data) - before).norm() < 1e-6 * before.norm()


def test_an_outlier_of_a_weight_is_spread_so_that_rounding_loses_less():
    def lost(*modifiers):
        model, data = tiny_llama(), batches(rows=2)
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.data[:, 9] *= 20
        before = logits(model, data)
        state = run(model, *modifiers, Rounding(**W4, targets=["re:.*down_proj"]))
        return state, float((logits(model, data) - before).norm() / before.norm())

    state, rotated = lost(QuIPModifier(rotations=["v", "u"]))
    _, plain = lost()

    assert rotated < 0.7 * plain
    before, after = state.report[LAYER].notes["incoherence"]
    assert after < 0.3 * before


def test_only_layers_that_are_quantized_are_rotated():
    model = tiny_llama()

    run(model, QuIPModifier(transform_block_size=256), Rounding(**W4, targets=["re:.*down_proj"]))  # others: 128

    assert attachments_on(model.get_submodule(LAYER))[0].kind == "input_rotation"
    assert not attachments_on(model.model.layers[0].mlp.up_proj)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rotations": ["w"]}, (ValueError, RecipeError), "some of v, u"),
        ({"transform_block_size": 48}, ModelError, r"v: model\.layers\.0.*blocks of 48"),
        ({"targets": ["Embedding"]}, TargetError, "embed_tokens is no linear layer"),
    ],
)
def test_bad_input_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        run(tiny_llama(), QuIPModifier(**settings))


def test_a_layer_whose_weight_alone_is_read_is_refused():
    class Direct(LlamaMLP):
        def forward(self, x):
            return functional.linear(self.act_fn(self.gate_proj(x)) * self.up_proj(x), self.down_proj.weight)

    model = tiny_llama()
    model.model.layers[1].mlp.__class__ = Direct

    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj: .* without calling it.*: ignore it"):
        run(model, QuIPModifier())


def test_codes_are_those_of_the_rotated_weight():
    model = tiny_llama()
    weight = model.get_submodule(LAYER).weight.detach().clone()

    state = run(model, QuIPModifier(), Rounding(scheme="W8A16", group_size=-1, ignore=["lm_head"]))

    rotation = attachments_on(model.get_submodule(LAYER))[0].rotation(weight.shape[1])
    expected = rotation.apply(weight)
    assert (state.quantized[LAYER].weight(torch.float32) - expected).norm() < 0.01 * expected.norm()


def transform_config(*names, kind="random-hadamard"):
    return {"config_groups": {name: {"type": kind, "apply": [], "head_dim": None} for name in names}}


def test_what_llm_compressor_keeps_of_its_transforms_is_read_where_it_says_the_same():
    kept = {"rotations": ["v", "u"], "transform_config": transform_config("v", "u"), "ignore": "lm_head"}

    assert QuIPModifier(**kept, randomize=False, learnable=False).ignore == ["lm_head"]


@pytest.mark.parametrize(
    "changed",
    [transform_config("v", "u"), transform_config("v", kind="hadamard"), {"config_groups": 5}, {}, 5],
)
def test_a_transform_that_the_settings_do_not_say_is_refused(changed):
    with pytest.raises(ValueError, match="something else than rotations and transform_type"):
        QuIPModifier(transform_config=changed)


@pytest.mark.parametrize("name", ["randomize", "learnable"])
def test_what_is_not_done_there_is_not_done_here(name):
    with pytest.raises(ValueError, match=name):
        QuIPModifier(**{name: True})


def test_a_second_online_rotation_of_a_layer_is_refused_and_changes_nothing():
    model = tiny_llama()
    run(model, QuIPModifier())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    with pytest.raises(ModelError, match="has an online rotation already.*ignore the layer"):
        run(model, QuIPModifier(transform_block_size=32))

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
