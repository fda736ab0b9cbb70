"""AWQModifier: beside a quantizer, alone, for several schemes at once, and bad input."""

import pytest
import torch
from attrs import frozen

from coldpress import NumericsError, RecipeError, SchemeError, TargetError, preset, read_recipe, testing, write_recipe
from coldpress.plugin import Call, Modifier, Quantizer, Stage, State, hookimpl
from coldpress.recipe import Recipe
from coldpress.registry import find
from coldpress.testing.models import batches, logits, tiny_conv1d, tiny_llama
from coldpress.testing.rounding import Rounding
from coldpress_awq import AWQMapping, AWQModifier
from coldpress_awq.block_objective import first_calls

V, OUT, UP, DOWN = (
    f"model.layers.0.{name}" for name in ("self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
)
THREE_BITS = {"num_bits": 3, "group_size": 32}
W4 = {"scheme": "W4A16_ASYM", "group_size": 32, "ignore": ["lm_head"]}


@frozen(kw_only=True, eq=False)
class Pretender(Modifier):
    """Says how it would quantize, and does nothing, so that what AWQ did by itself can be seen."""

    name: str = "W4A16_ASYM"

    def scheme_for(self, layer):
        return None if "lm_head" in layer.name else preset(self.name, group_size=32)

    @hookimpl
    def finalize(self, state: State, stage) -> None:
        """Nothing."""


def outlying(make=tiny_llama, **arguments):
    """A model some of whose channels are large."""
    model = make(**arguments)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or ".ln_" in name:
                parameter[::9] *= 6
            if "v_proj" in name or "up_proj" in name:
                parameter[::5] *= 10
    return model


def run(*modifiers, model=None, **settings):
    return testing.run(*modifiers, model=outlying() if model is None else model, **settings)


def error(*modifiers, make=tiny_llama):
    data, model = batches(batch_size=4), outlying(make)
    said = logits(model, data)
    return float((logits(run(*modifiers, model=model).model, data) - said).norm() / said.norm())


@pytest.mark.parametrize("scheme", ["W4A16_ASYM", "W4A16"])
def test_rounding_loses_less_after_it(scheme):
    settings = {**W4, "scheme": scheme}

    assert error(AWQModifier(), Rounding(**settings)) < 0.9 * error(Rounding(**settings))


@pytest.mark.parametrize("make", [tiny_llama, tiny_conv1d])
def test_by_itself_it_keeps_the_function(make):
    model, data = outlying(make, dtype=torch.float64), batches(batch_size=4)
    before, said = {n: p.clone() for n, p in model.named_parameters()}, logits(model, data)

    run(AWQModifier(), Pretender(), model=model)

    assert (logits(model, data) - said).norm() <= 1e-6 * said.norm()
    assert sum(not torch.equal(model.get_parameter(name), old) for name, old in before.items()) >= 10


@pytest.mark.parametrize("settings", [{}, {"weight_observer": "memoryless_minmax"}, {"weight_observer": "mse"}])
@pytest.mark.parametrize("clip", [True, False])
def test_with_a_scheme_of_its_own_it_does_what_it_does_before_rounding(clip, settings):
    settings = {**W4, **settings}
    alone, beside = (
        run(*modifiers)
        for modifiers in (
            [AWQModifier(clip=clip, **settings)],
            [AWQModifier(clip=clip), find("modifiers", "QuantizationModifier")(**settings)],
        )
    )

    found, expected = alone.model.state_dict(), beside.model.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert alone.quantized[DOWN].scheme == beside.quantized[DOWN].scheme


@pytest.mark.parametrize("settings", [{}, {"objective": "block"}])
def test_who_clips_loses_less(settings):
    scheme = {"ignore": ["lm_head"], "config_groups": {"all": {"targets": ["Linear"], "weights": THREE_BITS}}}

    quantization = find("modifiers", "QuantizationModifier")

    assert error(AWQModifier(**settings), quantization(**scheme)) < 0.95 * error(
        AWQModifier(**settings, clip=False), quantization(**scheme)
    )


def test_only_for_who_takes_the_whole_range_weights_are_clipped():
    """An observer that searches, and GPTQ, which makes up for what is cut off, choose ranges themselves."""
    gptq, quantization = (find("modifiers", name) for name in ("GPTQModifier", "QuantizationModifier"))
    followers = [
        quantization(**W4),
        quantization(**W4, weight_observer="static_minmax"),
        quantization(**W4, weight_observer="memoryless_mse"),
        gptq(**W4),
        gptq(**W4, weight_observer="memoryless_minmax"),
    ]

    notes = [run(AWQModifier(), one).report[DOWN].notes for one in followers]

    assert ["clipped_to" in one for one in notes] == [True, True, False, False, False]
    assert 0.5 < notes[0]["clipped_to"] < 0.99


def test_running_blocks_again_chooses_by_their_outputs_and_leaves_nothing():
    model = outlying()
    block = run(AWQModifier(objective="block"), Rounding(**W4), model=model)
    gram = run(AWQModifier(), Rounding(**W4))

    assert block.report[UP].notes["predicted_gain"] > 0.05
    assert block.report[UP].notes["predicted_gain"] != gram.report[UP].notes["predicted_gain"]
    assert not block.scratch
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert error(AWQModifier(objective="block"), Rounding(**W4)) < 0.9 * error(Rounding(**W4))


@pytest.mark.parametrize("size", [2, 8])
def test_blocks_are_run_again_on_the_first_tokens_however_they_are_batched(size, monkeypatch):
    monkeypatch.setattr("coldpress_awq.block_objective.TOKENS", 250)
    calls = [Call(index, (torch.zeros(size, 16, 4),), {}, torch.nn.Identity()) for index in range(40 // size)]

    found = first_calls(calls)

    assert sum(call.args[0].shape[:-1].numel() for call in found) == 256


def test_calls_that_are_kept_stay_where_they_are_when_a_pipeline_puts_its_own_aside():
    x, mask = torch.ones(1, 16, 4), torch.ones(16)

    def calls():
        yield Call(0, (x,), {"masks": (mask,)}, lambda x, masks: x * masks[0][:, None])
        x.data, mask.data = torch.empty(0), torch.empty(0)

    (found,) = first_calls(calls())

    assert torch.equal(found.output(), torch.ones(1, 16, 4))


def test_every_pair_is_scaled_and_says_how():
    state = run(AWQModifier(), Rounding(**W4))

    for reader, producer in ((OUT, V), (DOWN, UP), (UP, "model.layers.0.post_attention_layernorm")):
        notes = state.report[reader].notes
        assert notes["smoothed_in"] == producer
        assert notes["predicted_gain"] > 0.05
        assert 0 <= notes["ratio"] < 1


def test_the_scheme_that_follows_is_the_one_that_is_searched_for():
    fine, coarse = (run(AWQModifier(), Rounding(**{**W4, "scheme": name})) for name in ("W8A16", "W2A16"))

    scale = [state.model.model.layers[0].input_layernorm.weight for state in (fine, coarse)]
    assert not torch.equal(*scale)


def test_readers_of_one_producer_may_have_different_schemes_and_readers_without_one_are_left_alone():
    values = Rounding(scheme="FP8_DYNAMIC", targets=["re:.*v_proj"])
    others = Rounding(scheme="W4A16_ASYM", group_size=32, targets=["re:.*[qk]_proj"])

    state = run(AWQModifier(), values, others)

    assert state.report["model.layers.0.self_attn.q_proj"].notes["predicted_gain"] > 0.05
    assert "no later modifier quantizes" in state.report[DOWN].reason


def test_a_layer_that_nobody_quantizes_is_scaled_with_its_neighbours_and_does_not_count():
    some = Rounding(**{**W4, "ignore": ["lm_head", "re:.*v_proj"]})

    state = run(AWQModifier(), some)

    assert "ratio" not in state.report[V].notes
    assert state.report[V].notes["smoothed_in"] == "model.layers.0.input_layernorm"


def test_nothing_that_rounds_is_an_error_that_says_what_to_do():
    with pytest.raises(SchemeError, match="put a QuantizationModifier or a GPTQModifier after it"):
        run(AWQModifier())


@pytest.mark.parametrize("alone", [True, False])
def test_a_scheme_of_inputs_only_rounds_nothing_either(alone):
    inputs = {
        "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": {"num_bits": 8, "dynamic": True}}}
    }

    with pytest.raises(SchemeError, match="nothing in the recipe rounds them"):
        run(*([AWQModifier(**inputs)] if alone else [AWQModifier(), Rounding(**inputs)]))


def test_a_quantizer_before_it_is_refused_when_the_recipe_is_read():
    with pytest.raises(RecipeError, match="put AWQModifier before Rounding"):
        Recipe([Rounding(**W4), AWQModifier()])


def test_a_group_size_without_a_scheme_is_refused():
    with pytest.raises(SchemeError, match="group_size is for rounding"):
        AWQModifier(group_size=32)


def test_older_recipes_with_schemes_in_full_are_read_and_written():
    text = (
        "quant_stage:\n  quant_modifiers:\n    AWQModifier:\n      ignore: [lm_head]\n"
        "      config_groups:\n        group_0:\n"
        "          targets: [Linear]\n          weights: {num_bits: 4, type: int, symmetric: false, strategy: group,"
        " group_size: 32}\n"
    )
    recipe = read_recipe(text)
    again = read_recipe(write_recipe(recipe))
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}
    plain = AWQModifier(config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"])

    found = run(*again.modifiers).model.state_dict()
    for same in (AWQModifier(**W4), plain):
        assert all(torch.equal(tensor, found[name]) for name, tensor in run(same).model.state_dict().items())


def test_a_mapping_that_forgets_a_reader_is_refused():
    with pytest.raises(TargetError, match=r"also feeds .*v_proj"):
        run(AWQModifier(mappings=[[["re:.*q_proj", "re:.*k_proj"], "re:.*input_layernorm"]]), Rounding(**W4))


def test_mappings_in_the_peers_words_are_understood_in_a_recipe():
    recipe = read_recipe(
        "modifiers:\n  - AWQModifier:\n      duo_scaling: both\n      offload_device: cpu\n      mappings:\n"
        '        - {smooth_layer: "re:.*up_proj", balance_layers: ["re:.*down_proj"]}\n'
    )

    state = run(*recipe.modifiers, Rounding(**W4))

    assert state.report[DOWN].notes["smoothed_in"] == UP
    assert "smoothed_in" not in state.report[OUT].notes


def test_mappings_are_objects_or_plain_data_and_are_written_as_the_latter():
    mapping = AWQMapping("re:.*up_proj", ["re:.*down_proj"], activation_hook_target="mlp")
    recipe = Recipe([AWQModifier(mappings=[mapping])])

    plain = {"balance_layers": ["re:.*down_proj"], "smooth_layer": "re:.*up_proj"}
    assert recipe.modifiers[0].mappings == [plain]
    assert read_recipe(write_recipe(recipe)).modifiers[0].mappings == [plain]


def test_ranges_are_kept_for_a_quantizer_that_has_its_own_sweep():
    modifiers = AWQModifier(), find("modifiers", "QuantizationModifier")(**W4)
    together, apart = (
        run(*modifiers, pipeline=find("pipelines", name)(), model=outlying()) for name in ("basic", "independent")
    )

    found, expected = apart.model.state_dict(), together.model.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert not together.clip_ranges
    assert not apart.clip_ranges


@pytest.mark.parametrize("settings", [{"n_grid": 0}, {"duo_scaling": "yes"}, {"scheme": "W4A17"}])
def test_settings_that_cannot_be_meant_are_refused(settings):
    with pytest.raises((ValueError, SchemeError, RecipeError)):
        AWQModifier(**settings)


def test_activations_that_are_always_zero_leave_a_pair_alone():
    model = tiny_llama()
    model.get_submodule(UP).weight.data.zero_()

    state = run(AWQModifier(), Rounding(**W4), model=model)

    assert "zero for all of the calibration data" in state.report[DOWN].notes["not_smoothed"]
    assert state.report[DOWN].status == "quantized"


def test_infinite_activations_stop_the_run_and_are_named():
    model = tiny_llama(dtype=torch.float16)
    model.get_submodule(UP).weight.data.fill_(6e4)

    with pytest.raises(NumericsError, match=r"layers\.0\.mlp\.down_proj"):
        run(AWQModifier(), Rounding(**W4), model=model)


@pytest.mark.parametrize("pipeline", ["basic", "sequential", "layer_sequential", "independent"])
def test_it_keeps_the_function_under_every_pipeline(pipeline):
    model, data = outlying(dtype=torch.float64), batches(batch_size=4)
    said = logits(model, data)

    run(AWQModifier(), Pretender(), model=model, pipeline=find("pipelines", pipeline)())

    assert (logits(model, data) - said).norm() < 1e-6 * said.norm()


@frozen(kw_only=True, eq=False)
class Enlarger(Modifier):
    """Multiplies weights, after AWQ has looked at them and before they are quantized."""

    @hookimpl
    def finalize(self, state, stage):
        for layer in self.layers(stage):
            state.set_weight(layer, layer.weight * 100)


def test_the_global_scale_is_that_of_the_weights_as_they_are_quantized():
    nvfp4 = {"scheme": "NVFP4A16", "ignore": ["lm_head"]}

    state = run(AWQModifier(), Enlarger(targets=["re:.*layers.*"]), find("modifiers", "QuantizationModifier")(**nvfp4))

    layers = Stage.whole(state.model).layers(["re:.*layers.0.*[qkv]_proj"])
    kept = [state.quantized[layer.name] for layer in layers]
    assert max(float(one.scale.max()) for one in kept) == 448  # float8's largest: what a stale scale would exceed
    assert len({float(one.global_scale) for one in kept}) == 1
    # to the weight before it was enlarged: 99 of it, give or take what rounding does
    assert all(abs(state.report[layer.name].weight_error - 99) < 20 for layer in layers)


@pytest.mark.parametrize("scheme", ["NVFP4", "FP8"])
def test_a_scheme_of_its_own_may_have_static_inputs(scheme):
    own = run(AWQModifier(scheme=scheme, ignore=["lm_head"]), model=outlying())
    together = run(AWQModifier(ignore=["lm_head"]), Quantizer(scheme=scheme, ignore=["lm_head"]), model=outlying())

    assert len(own.plan) == 14
    for name, found in own.quantized.items():
        expected = together.quantized[name]
        assert torch.equal(found.codes, expected.codes)
        assert (found.input_scale is None) == (found.input_global_scale is not None)


@pytest.mark.parametrize("pipeline", ["basic", "sequential", "independent"])
def test_between_two_quantizers_it_leaves_out_what_has_codes(pipeline):
    attention, mlp = (
        Rounding(scheme="W8A16", targets=[f"re:.*{name}"], group_size=32) for name in ("self_attn", "mlp")
    )
    alone = run(attention, model=outlying(), pipeline=find("pipelines", pipeline)())

    state = run(attention, AWQModifier(), mlp, model=outlying(), pipeline=find("pipelines", pipeline)())

    assert torch.equal(state.quantized[OUT].codes, alone.quantized[OUT].codes)
    assert torch.equal(state.model.get_submodule(OUT).weight, alone.model.get_submodule(OUT).weight)
    assert "is quantized already" in state.report[OUT].notes["not_smoothed"]
    assert state.report[DOWN].notes["smoothed_in"] == UP
    with pytest.raises(RecipeError, match="put AWQModifier before Rounding"):
        Recipe([attention, AWQModifier()])
