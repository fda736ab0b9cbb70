"""SmoothQuantModifier: strengths, what it does to quantization, bad input, and its sample of tokens."""

import pytest
import torch

from coldpress import NumericsError, RecipeError, read_recipe, testing
from coldpress.recipe import Recipe
from coldpress.registry import find
from coldpress.testing import conformance
from coldpress.testing.models import batches, logits, tiny_llama
from coldpress.testing.rounding import Rounding
from coldpress_smoothquant import LogarithmicEqualizationModifier, SmoothQuantModifier
from coldpress_smoothquant.sample import Sample

LAYER = "model.layers.0.mlp.down_proj"

OTHER_TOKENS = "a fresh sample of a signal that moved has other tokens, which are as good"

test_the_sample_is_a_statistic = conformance(
    Sample, settings={"count": 4}, expected_failures={"supports": OTHER_TOKENS}
)


def outlying():
    """A model some of whose channels are large: norms and value heads with a few large numbers."""
    model = tiny_llama()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layernorm" in name:
                parameter[::9] *= 30
            if "v_proj" in name or "up_proj" in name:
                parameter[::5] *= 20
    return model


def run(*modifiers, model=None, **settings):
    return testing.run(*modifiers, model=outlying() if model is None else model, **settings)


def error(*modifiers):
    data = batches(batch_size=4)
    model = outlying()
    said = logits(model, data)
    return float((logits(run(*modifiers, model=model).model, data) - said).norm() / said.norm())


W8A8 = {"scheme": "W8A8", "ignore": ["lm_head"]}


def test_rounding_to_8_bits_loses_less_after_it_and_least_where_the_strength_is_searched():
    plain = error(Rounding(**W8A8))
    half = error(SmoothQuantModifier(), Rounding(**W8A8))
    searched = error(SmoothQuantModifier(smoothing_strength="auto"), Rounding(**W8A8))

    assert searched < 1.05 * half
    assert half < 0.7 * plain


def test_a_search_needs_somebody_who_quantizes():
    state = run(SmoothQuantModifier(smoothing_strength="auto"))

    assert "no later modifier quantizes its readers" in state.report[LAYER].reason


def test_a_search_says_what_it_found():
    state = run(SmoothQuantModifier(smoothing_strength="auto"), Rounding(**W8A8))

    assert 0 <= state.report[LAYER].notes["smoothing_strength"] <= 1
    assert state.report[LAYER].notes["smoothed_in"] == "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    "modifier", [SmoothQuantModifier(algorithm="log_equalization"), LogarithmicEqualizationModifier()]
)
def test_both_names_of_logarithmic_equalization_do_the_same(modifier):
    found = run(modifier).model.state_dict()
    other = run(SmoothQuantModifier()).model.state_dict()

    assert all(torch.equal(t, found[n]) for n, t in run(LogarithmicEqualizationModifier()).model.state_dict().items())
    assert any(not torch.equal(t, found[n]) for n, t in other.items())


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan"), "half", None])
def test_a_strength_outside_of_0_and_1_is_refused(strength):
    with pytest.raises((ValueError, RecipeError), match="from 0 to 1"):
        SmoothQuantModifier(smoothing_strength=strength)


def test_a_recipe_in_the_peers_words_is_understood():
    recipe = read_recipe(
        "quant_stage:\n  quant_modifiers:\n    SmoothQuantModifier:\n      smoothing_strength: 0.8\n"
        '      mappings: [[["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*input_layernorm"]]\n'
        "      num_calibration_steps: 512\n"
    )

    state = run(*recipe.modifiers)

    assert state.report["model.layers.0.self_attn.q_proj"].notes["smoothed_in"] == "model.layers.0.input_layernorm"
    assert state.report[LAYER].reason == "not smoothed: no mapping names it"


def test_a_wrong_strength_in_a_recipe_has_its_place():
    with pytest.raises(RecipeError, match=r":3:.*from 0 to 1"):
        read_recipe("modifiers:\n  - SmoothQuantModifier:\n      smoothing_strength: 2.0\n")


def test_after_a_quantizer_it_is_refused_when_the_recipe_is_read():
    with pytest.raises(RecipeError, match="SmoothQuantModifier moves scales"):
        Recipe([Rounding(**W8A8), SmoothQuantModifier()])


def test_activations_that_are_always_zero_leave_a_pair_alone():
    model = tiny_llama()
    model.model.layers[0].mlp.up_proj.weight.data.zero_()

    state = run(SmoothQuantModifier(), model=model)

    assert "zero for all of the calibration data" in state.report[LAYER].reason
    assert logits(model, batches(rows=2)).isfinite().all()


def test_infinite_activations_stop_the_run_and_are_named():
    model = tiny_llama(dtype=torch.float16)
    model.model.layers[0].mlp.up_proj.weight.data.fill_(6e4)

    with pytest.raises(NumericsError, match=r"layers\.0\.mlp\.down_proj"):
        run(SmoothQuantModifier(), model=model)


@pytest.mark.parametrize("pipeline", ["basic", "sequential", "layer_sequential", "independent"])
def test_it_keeps_the_function_under_every_pipeline(pipeline):
    model, data = tiny_llama(dtype=torch.float64), batches(batch_size=4)
    said = logits(model, data)

    run(SmoothQuantModifier(), model=model, pipeline=find("pipelines", pipeline)())

    assert (logits(model, data) - said).norm() < 1e-6 * said.norm()
