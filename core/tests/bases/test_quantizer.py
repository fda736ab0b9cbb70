"""Quantizer: which scheme a layer gets, what is needed for it, and the scales of static inputs."""

import pytest
import torch
from attrs import frozen

from coldpress.errors import CalibrationError, SchemeError
from coldpress.numerics import calculate_qparams, dequantize
from coldpress.plugin import Modifier, Quantizer, Stage, hookimpl
from coldpress.testing import run
from coldpress.testing.models import batches, tiny_llama
from coldpress.testing.trial import inputs_of

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"
STATIC = {
    "weights": {"num_bits": 8},
    "input_activations": {"num_bits": 8, "symmetric": False, "observer": "static_minmax"},
}


def layer(name, model=None):
    return next(one for one in Stage.whole(model or tiny_llama()).every_layer if one.name == name)


def groups(**schemes):
    return Quantizer(config_groups=schemes)


def bits(modifier, name):
    scheme = modifier.scheme_for(layer(name))
    return None if scheme is None else scheme.weights.num_bits


def test_a_name_wins_over_a_pattern_and_a_pattern_over_a_class():
    by = {"Linear": 8, "re:.*mlp.*": 6, UP: 4}
    schemes = {f"g{n}": {"targets": [target], "weights": {"num_bits": n}} for target, n in by.items()}

    for order in (list(schemes), list(schemes)[::-1]):
        modifier = groups(**{name: schemes[name] for name in order})
        assert [bits(modifier, name) for name in (Q, UP.replace("up", "gate"), UP)] == [8, 6, 4]


def test_what_is_ignored_or_unquantized_has_no_scheme():
    modifier = Quantizer(scheme={"W8A16": ["Linear"], "UNQUANTIZED": ["re:.*q_proj"]}, ignore=["re:.*up_proj"])

    assert [bits(modifier, name) for name in (Q, UP, UP.replace("up", "gate"))] == [None, None, 8]
    assert not {Q, UP} & {one.name for one in modifier.layers(Stage.whole(tiny_llama()))}


def test_group_size_changes_a_preset_and_observers_are_those_that_are_named():
    modifier = Quantizer(scheme="W4A16", group_size=32, weight_observer="mse")
    args = modifier.scheme_for(layer(Q)).weights

    assert (args.group_size, args.observer) == (32, "mse")
    assert Quantizer(scheme="W4A16", observer={"weights": "mse"}).scheme_for(layer(Q)).weights.observer == "mse"


@pytest.mark.parametrize(
    ("settings", "data", "propagated", "boundaries"),
    [
        ({"scheme": "W4A16"}, False, True, False),
        ({"scheme": "W8A8"}, False, False, False),
        ({"config_groups": {"all": {"targets": ["Linear"], **STATIC}}}, True, False, False),
        ({"scheme": "FP8", "input_observer": "minmax"}, True, False, True),
        ({"scheme": "W4A16", "weight_observer": "imatrix_mse"}, True, True, False),
    ],
)
def test_what_it_needs_follows_from_its_schemes(settings, data, propagated, boundaries):
    needs = Quantizer(**settings).needs()

    assert (needs.data, needs.propagated_error, needs.batch_boundaries) == (data, propagated, boundaries)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "give either scheme"),
        ({"scheme": "W4A16", "config_groups": {}}, "one of the two"),
        ({"scheme": "W4A17"}, "W4A1"),
        ({"scheme": "W4A16", "observer": {"weight": "mse"}}, "observer has no part 'weight'; did you mean 'weights'"),
        ({"scheme": "W4A16", "observer": {"weights": "mse"}, "weight_observer": "mse"}, "give either observer or"),
        ({"config_groups": {"all": {"targets": ["Linear"], **STATIC}}, "group_size": 8}, "in config_groups write it"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, said):
    with pytest.raises(SchemeError, match=said):
        Quantizer(**settings)


def test_weights_are_at_the_nearest_point_and_static_inputs_span_what_was_seen():
    model, data = tiny_llama(), batches(rows=6, batch_size=2)
    seen, old = inputs_of(model, data)[Q], layer(Q, model).weight.clone()

    state = run(groups(all={"targets": [Q], **STATIC}), model=model, data=data)

    found = state.quantized[Q]
    args = found.scheme
    assert (old - layer(Q, model).weight).abs().max() <= found.scale.max() / 2 + 1e-6
    decoded = dequantize(found.codes, found.scale, found.zero_point, args.weights, dtype=old.dtype)
    assert torch.equal(decoded, layer(Q, model).weight)
    scale, zero_point = calculate_qparams(seen.min().reshape(1), seen.max().reshape(1), args.input_activations)
    torch.testing.assert_close(found.input_scale, scale)
    assert torch.equal(found.input_zero_point, zero_point)


def test_static_inputs_that_no_token_reaches_have_no_scale():
    model = tiny_llama()
    model.model.layers[0].mlp.forward = lambda x: x  # its layers are never called

    with pytest.raises(CalibrationError, match=rf"{UP} saw no token of the calibration data, so its static inputs"):
        run(groups(all={"targets": [UP], **STATIC}), model=model)


def test_a_range_that_an_earlier_modifier_chose_is_taken_once():
    @frozen(kw_only=True, eq=False)
    class Clips(Modifier):
        @hookimpl
        def finalize(self, state, stage):
            for one in self.layers(stage):
                ends = torch.full((len(one.weight), 1), 0.05)
                state.clip_ranges[one.name] = (-ends, ends)

    quantizer = Quantizer(scheme="W8A16", group_size=-1, targets=[Q])
    state = run(Clips(targets=[Q]), quantizer)

    assert state.clip_ranges == {}
    torch.testing.assert_close(state.quantized[Q].scale, torch.full((128, 1), 0.05 / 127.5))
    assert layer(Q, state.model).weight.abs().max() <= 0.051


@frozen(kw_only=True, eq=False)
class Doubles(Modifier):
    """Makes weights twice as large."""

    @hookimpl
    def finalize(self, state, stage):
        for one in self.layers(stage):
            state.set_weight(one, one.weight * 2)


def test_the_global_scale_is_that_of_the_weights_as_they_are_and_of_all_that_is_fused():
    fused = [Q, Q.replace("q_proj", "k_proj"), Q.replace("q_proj", "v_proj")]
    quantizer = Quantizer(scheme="NVFP4A16", targets=fused)

    plain, doubled = (run(*before, quantizer).quantized for before in ((), (Doubles(targets=fused),)))

    assert len({float(plain[name].global_scale) for name in fused}) == 1
    assert float(doubled[Q].global_scale) == pytest.approx(float(plain[Q].global_scale) / 2)
