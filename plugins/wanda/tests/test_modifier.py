"""WandaModifier: what it reads, which layer gets which sparsity, and what it falls back to."""

from functools import partial

import pytest
import torch

from coldpress import SchemeError, read_recipe, testing
from coldpress.plugin import State
from coldpress.testing.models import batches, tiny_conv1d, tiny_llama
from coldpress.testing.trial import inputs_of
from coldpress_wanda import WandaModifier
from coldpress_wanda.algorithm import wanda

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"
LINEAR = {"ignore": ["lm_head"]}


run = partial(testing.run, pipeline="sequential")


def weight(state, name):
    return state.model.get_submodule(name).weight.detach()


def zeros(state, name):
    return (weight(state, name) == 0).float().mean().item()


@pytest.mark.parametrize("structure", ["0:0", "2:4", "1:4"])
def test_weights_are_those_of_the_algorithm_on_all_tokens(structure):
    plain, data = tiny_llama(), batches(batch_size=4)
    x = inputs_of(plain, data)[UP]
    old = weight(State(model=plain), UP).clone()
    share = 0.5 if structure == "0:0" else None

    state = run(WandaModifier(sparsity=share, mask_structure=structure, targets=[UP]), data=data)

    pair = None if structure == "0:0" else tuple(map(int, structure.split(":")))
    expected = wanda(old, x.square().sum(0).sqrt(), sparsity=0.5, structure=pair)
    assert ((weight(state, UP) == 0) != (expected == 0)).float().mean() < 0.002
    assert state.report[UP].status == "changed"


def test_the_peers_name_and_words_are_understood():
    (modifier,) = read_recipe(
        "modifiers:\n"
        "  - WandaPruningModifier:\n"
        "      sparsity: 0.5\n"
        '      mask_structure: "2:4"\n'
        "      targets: Linear\n"
        "      ignore: ['re:.*lm_head']\n"
    ).modifiers

    assert isinstance(modifier, WandaModifier)
    assert zeros(run(modifier), UP) == 0.5


def test_conv1d_is_pruned_along_its_inputs():
    state = run(WandaModifier(mask_structure="2:4", **LINEAR), model=tiny_conv1d())

    assert ((weight(state, "transformer.h.0.mlp.c_fc").t().unflatten(1, (-1, 4)) == 0).sum(-1) == 2).all()


def test_a_list_has_one_sparsity_for_each_block():
    state = run(WandaModifier(sparsity=[0.25, 0.75], **LINEAR))

    assert (zeros(state, UP), zeros(state, DOWN)) == (0.25, 0.75)


def test_owl_compares_all_blocks():
    owl = WandaModifier(sparsity=0.5, sparsity_profile="owl", owl_m=2.0, owl_lmbda=0.1, **LINEAR)

    state = run(owl)
    asked = [state.report[name].notes["sparsity_asked"] for name in (UP, DOWN)]
    assert sorted(asked) == [pytest.approx(0.4), pytest.approx(0.6)]
    assert zeros(state, UP) == pytest.approx(asked[0], abs=0.01)


def test_one_modifier_may_prune_in_rows_and_another_in_groups():
    state = run(
        WandaModifier(mask_structure="2:4", targets=["re:.*mlp"]),
        WandaModifier(sparsity=0.25, targets=["re:.*self_attn"]),
    )

    assert zeros(state, UP) == 0.5
    assert zeros(state, "model.layers.1.self_attn.q_proj") == 0.25


def test_a_layer_that_no_token_reached_is_pruned_by_magnitude_and_says_so():
    class Idle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

        def forward(self, x):
            return self.used(x)

    state = run(WandaModifier(sparsity=0.5), model=Idle(), pipeline="basic", data=[{"x": torch.randn(1, 4, 8)}])

    assert state.report["idle"].status == "fallback"
    assert state.report["idle"].reason == "pruned by magnitude: no token of the calibration data reached it"
    assert state.report["used"].status == "changed"


def test_inputs_that_are_always_zero_leave_magnitude():
    model = tiny_llama()
    model.model.layers[0].post_attention_layernorm.weight.data.zero_()
    old = model.get_submodule(UP).weight.detach().clone()

    state = run(WandaModifier(sparsity=0.5, targets=[UP]), model=model)

    assert state.report[UP].status == "fallback"
    assert torch.equal(weight(state, UP), wanda(old, torch.ones(128), sparsity=0.5, structure=None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_single_token_and_outliers_in_half_precision_will_do(dtype):
    model = tiny_llama(dtype=dtype)
    model.get_submodule(UP).weight.data[0, 0] = 6e4
    model.model.layers[0].post_attention_layernorm.weight.data[3] = 300

    state = run(WandaModifier(mask_structure="2:4", targets=[UP]), model=model, data=batches(rows=1, length=1))

    assert weight(state, UP).dtype == dtype
    assert zeros(state, UP) == 0.5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "sparsity is missing"),
        ({"sparsity": 1.0}, "at least 0 and below 1"),
        ({"sparsity": 0.4, "mask_structure": "2:4"}, "a sparsity of 0.5"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, said):
    with pytest.raises(SchemeError, match=said):
        WandaModifier(**settings)


def test_a_structure_that_does_not_divide_names_the_layer():
    with pytest.raises(SchemeError, match="128 columns do not split into groups of 6"):
        run(WandaModifier(mask_structure="3:6", **LINEAR))


@pytest.mark.parametrize("pipeline", ["basic", "sequential"])
def test_owl_spares_the_block_with_more_outliers(pipeline):
    owl = WandaModifier(sparsity=0.5, sparsity_profile="owl", owl_m=2.0, owl_lmbda=0.1, **LINEAR)

    state = run(owl, pipeline=pipeline)

    asked = [state.report[name].notes["sparsity_asked"] for name in (UP, DOWN)]
    assert sorted(asked) == [pytest.approx(0.4), pytest.approx(0.6)]
    assert zeros(state, UP) == pytest.approx(asked[0], abs=0.01)
