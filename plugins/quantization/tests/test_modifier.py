"""QuantizationModifier: which scheme which layer gets, static inputs, observers, and what it refuses."""

from functools import partial

import pytest
import torch

from coldpress import QuantizationArgs, Scheme, SchemeError, TargetError, oneshot, preset, read_recipe, testing
from coldpress.errors import RecipeError, UnknownPluginError
from coldpress.numerics import calculate_qparams, fake_quantize, group
from coldpress.plugin import Modifier, hookimpl, observer_for
from coldpress.registry import find
from coldpress.testing.models import batches, tiny_conv1d, tiny_llama
from coldpress.testing.trial import claimed, inputs_of
from coldpress_quantization import QuantizationModifier

UP, DOWN, HEAD = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj", "lm_head"


run = partial(testing.run, data=(), pipeline="data_free")


def bits(state):
    return {name: scheme.weights.num_bits for name, scheme in state.schemes.items()}


def group_of(num_bits, targets):
    return {"targets": targets, "weights": {"num_bits": num_bits, "strategy": "channel"}}


# --- which scheme


def test_a_preset_quantizes_every_linear_layer_but_the_ignored():
    state = run(QuantizationModifier(scheme="W4A16", ignore=["lm_head"]))

    assert len(bits(state)) == 14
    assert set(bits(state).values()) == {4}
    assert HEAD not in bits(state)


class Halver(Modifier):
    """Chooses half of the whole range for every group of every weight."""

    @hookimpl
    def finalize(self, state, stage):
        for layer in self.layers(stage):
            grouped = group(layer.weight, preset("W4A16", group_size=32).weights)
            state.clip_ranges[layer.name] = grouped.amin(-1) / 2, grouped.amax(-1) / 2


@pytest.mark.parametrize("observer", [None, "minmax", "memoryless_mse"])
def test_a_range_that_another_modifier_chose_takes_the_place_of_the_whole_one_and_of_no_other(observer):
    quantizer = QuantizationModifier(scheme="W4A16", group_size=32, targets=[UP], weight_observer=observer)

    alone, after = run(quantizer), run(Halver(targets=[UP]), quantizer)

    halved = torch.equal(after.quantized[UP].scale, alone.quantized[UP].scale / 2)
    assert halved is (observer != "memoryless_mse")
    assert halved or torch.equal(after.quantized[UP].scale, alone.quantized[UP].scale)
    assert not after.clip_ranges


def test_the_first_words_of_every_example_are_understood():
    modifier = QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"])

    assert modifier.targets == ["Linear"]
    assert modifier.schemes() == [preset("FP8_DYNAMIC")]


def test_group_size_is_in_place_of_the_presets():
    state = run(QuantizationModifier(scheme="W4A16", group_size=32, targets=[UP, DOWN]))

    assert state.quantized[UP].scale.shape == (256, 128 // 32)
    assert state.quantized[DOWN].scale.shape == (128, 256 // 32)


def test_group_size_minus_one_is_one_scale_a_row():
    state = run(QuantizationModifier(scheme="W4A16", group_size=-1, targets=[UP]))

    assert state.quantized[UP].scale.shape == (256, 1)


def test_several_presets_by_targets():
    modifier = QuantizationModifier(scheme={"W4A16": ["re:.*mlp"], "W8A16": "re:.*self_attn"}, group_size=64)
    found = bits(run(modifier))

    assert {width for name, width in found.items() if "mlp" in name} == {4}
    assert {width for name, width in found.items() if "self_attn" in name} == {8}
    assert HEAD not in found


def test_config_groups_are_schemes_in_full():
    modifier = QuantizationModifier(config_groups={"a": group_of(3, ["re:.*down_proj"]), "b": group_of(6, [HEAD])})
    found = bits(run(modifier))

    assert found == {DOWN: 3, "model.layers.1.mlp.down_proj": 3, HEAD: 6}


def test_config_groups_take_scheme_objects_too():
    scheme = Scheme(targets=[UP], weights=QuantizationArgs(num_bits=5, strategy="channel"))

    assert bits(run(QuantizationModifier(config_groups={"a": scheme}))) == {UP: 5}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_name_wins_over_a_pattern_and_a_pattern_over_a_class(order):
    groups = [group_of(4, ["Linear"]), group_of(6, ["re:.*mlp"]), group_of(8, [UP])]
    modifier = QuantizationModifier(config_groups={f"group_{i}": groups[i] for i in order})
    found = bits(run(modifier))

    assert (found[UP], found[DOWN], found[HEAD]) == (8, 6, 4)


def test_of_two_equal_targets_the_first_group_wins():
    modifier = QuantizationModifier(config_groups={"a": group_of(4, ["re:.*mlp"]), "b": group_of(8, ["re:.*up"])})

    assert bits(run(modifier))[UP] == 4


def test_ignore_wins_over_an_exact_name():
    modifier = QuantizationModifier(scheme="W8A16", group_size=-1, targets=[UP, DOWN], ignore=["re:.*up_proj"])

    assert set(bits(run(modifier))) == {DOWN}


def test_conv1d_is_linear():
    state = run(QuantizationModifier(scheme="W8A16", group_size=-1, ignore=["lm_head"]), model=tiny_conv1d())

    assert len(bits(state)) == 8
    assert state.quantized["transformer.h.0.mlp.c_fc"].codes.shape == (256, 64)


def test_two_modifiers_share_a_model():
    state = run(
        QuantizationModifier(scheme="W4A16", targets=["re:.*mlp"]),
        QuantizationModifier(scheme="W8A16", group_size=64, targets=["re:.*self_attn"]),
    )

    assert len(bits(state)) == 14


def test_a_recipe_is_the_same_modifier():
    text = "modifiers:\n  - QuantizationModifier:\n      scheme: W4A16\n      group_size: 64\n      ignore: [lm_head]\n"
    (modifier,) = read_recipe(text).modifiers

    assert bits(run(modifier)) == bits(run(QuantizationModifier(scheme="W4A16", group_size=64, ignore=["lm_head"])))


# --- scales and inputs


def test_weights_are_those_of_the_default_observer_bit_for_bit():
    plain, model = tiny_llama(), tiny_llama()
    run(QuantizationModifier(scheme="W4A16_ASYM", ignore=["lm_head"]), model=model)
    args = preset("W4A16_ASYM").weights

    for layer in claimed(QuantizationModifier(scheme="W4A16", ignore=["lm_head"]), plain):
        grouped = group(layer.weight, args)
        expected = fake_quantize(layer.weight, *calculate_qparams(grouped.amin(-1), grouped.amax(-1), args), args)
        assert torch.equal(model.get_submodule(layer.name).weight, expected)


def test_static_inputs_are_seen_by_the_basic_pipeline():
    plain, data = tiny_llama(), batches(rows=4, batch_size=2)
    inputs = inputs_of(plain, data)
    modifier = QuantizationModifier(scheme="FP8", input_observer="static_minmax", ignore=["lm_head"])

    state = run(modifier, pipeline="basic", data=data)

    assert modifier.needs().data
    for name, quantized in state.quantized.items():
        x = inputs[name]
        assert quantized.input_scale.item() == pytest.approx(x.abs().max().item() / 448, rel=1e-4)
        assert quantized.input_scale.shape == (1,)


def test_dynamic_inputs_and_weights_alone_need_no_data():
    assert not QuantizationModifier(scheme="W8A8").needs().data
    assert not QuantizationModifier(scheme="W4A16").needs().data


def test_padding_is_not_seen():
    model, data = tiny_llama(), batches(rows=2, batch_size=2)
    padded = [{name: torch.nn.functional.pad(value, (0, 5)) for name, value in batch.items()} for batch in data]
    modifier = QuantizationModifier(scheme="FP8", input_observer="static_minmax", targets=["re:.*layers.0.*q_proj"])

    with_padding = run(modifier, pipeline="basic", data=padded, model=model)
    without = run(modifier, pipeline="basic", data=data)

    name = "model.layers.0.self_attn.q_proj"
    torch.testing.assert_close(with_padding.quantized[name].input_scale, without.quantized[name].input_scale)


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_observer": "mse", "input_observer": "static_minmax"},
        {"observer": {"weights": "mse", "input": "static_minmax"}},
    ],
)
def test_observers_are_in_place_of_the_schemes(settings):
    (scheme,) = QuantizationModifier(scheme="FP8", **settings).schemes()

    assert (scheme.weights.observer, scheme.input_activations.observer) == ("mse", "static_minmax")


def test_an_observer_that_is_not_named_stays_the_schemes():
    (scheme,) = QuantizationModifier(scheme="FP8", weight_observer="mse").schemes()

    assert scheme.input_activations.observer == preset("FP8").input_activations.observer


def test_the_observer_of_weights_is_asked():
    plain = tiny_llama()
    state = run(QuantizationModifier(scheme="W4A16", weight_observer="mse", targets=[UP]))
    (scheme,) = QuantizationModifier(scheme="W4A16", weight_observer="mse").schemes()
    observer = observer_for(scheme.weights, "memoryless_minmax")
    grouped = group(plain.get_submodule(UP).weight.detach(), scheme.weights)

    scale, _ = calculate_qparams(*observer.range(observer.update(None, grouped)), scheme.weights)

    assert torch.equal(state.quantized[UP].scale, scale)


# --- what it refuses


def test_a_group_size_that_does_not_divide_names_layer_width_and_what_would():
    with pytest.raises(SchemeError, match=r"q_proj: .*group_size 48 .* 128 columns.*16, 32, 64, 128 would"):
        run(QuantizationModifier(scheme="W4A16", group_size=48, ignore=["lm_head"]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "either scheme .* or config_groups"),
        ({"scheme": "W4A16", "config_groups": {"a": group_of(4, ["Linear"])}}, "either scheme .* or config_groups"),
        ({"scheme": "W4A61"}, "did you mean 'W4A16'"),
        ({"scheme": "W4A16", "observer": {"weights": "mse"}, "weight_observer": "mse"}, "either observer or"),
        ({"scheme": "W4A16", "observer": {"weight": "mse"}}, "did you mean 'weights'"),
        ({"config_groups": {"a": group_of(4, ["Linear"])}, "group_size": 64}, "group_size changes a preset"),
        ({"scheme": "MXFP4A16", "group_size": 64}, "groups of 32 by definition"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, said):
    with pytest.raises(SchemeError, match=said):
        QuantizationModifier(**settings)


def test_in_a_recipe_such_settings_have_a_place():
    with pytest.raises(RecipeError, match=r":3:.*did you mean 'W4A16'"):
        read_recipe("modifiers:\n  - QuantizationModifier:\n      scheme: W4A61\n")


def test_an_unknown_observer_is_an_error_with_a_suggestion():
    with pytest.raises(UnknownPluginError, match="did you mean 'memoryless_minmax'"):
        run(QuantizationModifier(scheme="W4A16", weight_observer="memoryless_minmx"))


def test_one_layer_twice_is_refused():
    with pytest.raises(SchemeError, match=f"{UP}: quantized by QuantizationModifier and QuantizationModifier"):
        run(QuantizationModifier(scheme="W4A16"), QuantizationModifier(scheme="W8A16", group_size=-1, targets=[UP]))


def test_a_group_whose_targets_match_nothing_is_refused():
    groups = {"a": group_of(4, ["Linear"]), "b": group_of(8, ["re:.*vision"])}

    with pytest.raises(TargetError, match="'re:.*vision' matches no layer"):
        run(QuantizationModifier(config_groups=groups))


@pytest.mark.parametrize(("scheme", "follows"), [("W8A8", False), ("FP8", False), ("W4A16", True), ("W4AFP8", True)])
def test_later_blocks_need_not_see_what_eight_bits_do(scheme, follows):
    assert QuantizationModifier(scheme=scheme).needs().propagated_error is follows
    assert QuantizationModifier(scheme={"W8A16": ["Linear"], scheme: ["re:.*mlp"]}).needs().propagated_error is follows


def test_keys_and_values_beside_another_quantizer_leave_its_layers_to_it():
    cache = QuantizationModifier(kv_cache_scheme={"num_bits": 8, "type": "float", "strategy": "tensor"})
    gptq = find("modifiers", "GPTQModifier")(scheme="W4A16", group_size=32, ignore=["lm_head"])

    for recipe in ([cache, gptq], [gptq, cache]):
        state = run(*recipe, pipeline="sequential", data=batches(rows=4))
        assert "output_error" in state.report[UP].notes  # GPTQ's, not rounding's


def test_layers_of_an_empty_scheme_stay_as_they_are_and_the_report_says_so():
    modifier = QuantizationModifier(
        scheme={"UNQUANTIZED": ["re:.*down_proj"], "W8A8": ["Linear"]}, ignore=["lm_head"], output_observer="minmax"
    )
    state = run(modifier)

    line = state.report["model.layers.0.mlp.down_proj"]
    assert (line.status, line.reason) == ("untouched", "left as it is by the scheme of QuantizationModifier")
    assert len(state.plan) == 12


def test_an_empty_scheme_alone_changes_nothing():
    state = run(QuantizationModifier(scheme="UNQUANTIZED"))

    assert not state.plan
    assert {line.status for line in state.report.values()} == {"untouched"}


def test_to_bypass_the_check_of_groups_does_not_make_them_fit():
    with pytest.raises(SchemeError, match="48 does not divide the 128 columns.*or ignore the layer"):
        run(QuantizationModifier(scheme="W4A16", group_size=48, bypass_divisibility_checks=True))


def test_an_embedding_may_have_an_observer_that_weighs_columns():
    group = {"targets": ["Embedding"], "weights": {"num_bits": 8, "strategy": "channel", "observer": "imatrix_mse"}}

    assert len(run(QuantizationModifier(config_groups={"a": group}), pipeline="basic", data=batches()).plan) == 1


def test_one_layer_of_those_that_engines_fuse_is_taken_with_a_warning_and_several_are_refused(caplog):
    one = oneshot(tiny_llama(), QuantizationModifier(scheme="W8A8", targets=["re:.*layers.1.self_attn.q_proj"]))

    assert one is not None
    assert "model.layers.1.self_attn.q_proj: int8 channel" in caplog.text
    assert "engines make one layer of these, and will refuse the checkpoint" in caplog.text
    with pytest.raises(SchemeError, match="give all layers of a group one scheme"):
        oneshot(tiny_llama(), QuantizationModifier(scheme="W8A8", targets=["re:.*q_proj"]))
