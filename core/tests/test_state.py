"""State: what is written into weights, measured and reported, and what is remembered between hooks."""

import json

import pytest
import torch
from torch import nn

from coldpress.errors import NumericsError
from coldpress.layer_report import LayerReport
from coldpress.numerics import calculate_qparams, group, quantize, relative_error
from coldpress.quantized import Quantized
from coldpress.schemes import preset
from coldpress.scratch import Scratch
from coldpress.stage import Layer, find_layers
from coldpress.state import State


@pytest.fixture
def layer():
    module = nn.Linear(64, 32, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.randn(32, 64, generator=torch.Generator().manual_seed(0)))
    return Layer("layer", module, ("Linear",))


@pytest.fixture
def state(layer):
    state = State(model=nn.ModuleDict({"layer": layer.module}))
    state.report["layer"] = LayerReport("layer", "Linear", (32, 64))
    return state


def quantized_as(layer, name, **overrides):
    scheme = preset(name, **overrides)
    grouped = group(layer.weight, scheme.weights)
    scale, zero_point = calculate_qparams(grouped.amin(-1), grouped.amax(-1), scheme.weights)
    codes = quantize(layer.weight, scale, zero_point, scheme.weights)
    return Quantized(scheme, codes=codes, scale=scale, zero_point=zero_point)


def test_a_quantized_layer_has_the_weights_that_its_codes_stand_for(state, layer):
    quantized = quantized_as(layer, "W4A16", group_size=32)

    state.set_quantized(layer, quantized)

    assert torch.equal(layer.weight, quantized.weight(torch.float32))
    assert state.quantized == {"layer": quantized}
    assert state.schemes == {"layer": quantized.scheme}


def test_weights_in_a_wider_dtype_than_the_scales_are_exact_products():
    codes = torch.arange(-128, 128, dtype=torch.int8).reshape(1, -1)
    scale = torch.tensor([[0.0123]]).bfloat16()

    weight = Quantized(preset("W8A8"), codes=codes, scale=scale).weight(torch.float32)

    assert torch.equal(weight, codes.float() * scale.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_static_inputs_are_rounded_in_the_dtype_of_the_inputs(dtype):
    from coldpress.bases.quantized_inputs import QuantizedInputs
    from coldpress.schemes import QuantizationArgs

    args = QuantizationArgs(num_bits=8, strategy="tensor")
    scale = torch.tensor([0.0123]).bfloat16()
    attachment = QuantizedInputs(args=args, scale=scale, zero_point=torch.zeros(1, dtype=torch.int8))
    x = torch.linspace(-2, 2, 100).to(dtype)

    rounded = attachment.inputs(nn.Identity(), x)

    steps = (x / scale.to(dtype)).round().clamp(-128, 127)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, steps * scale.to(dtype))


def test_the_report_says_what_and_how_much(state, layer):
    before = layer.weight.clone()

    state.set_quantized(layer, quantized_as(layer, "W4A16", group_size=32))

    line = state.report["layer"]
    assert (line.status, line.reason) == ("quantized", None)
    assert "int4" in line.scheme
    assert line.weight_error == pytest.approx(float((before - layer.weight).norm() / before.norm()), rel=1e-5)
    assert line.sparsity == pytest.approx(float((layer.weight == 0).float().mean()))
    json.dumps(line.to_dict())


def test_inputs_alone_leave_the_weight_as_it_is(state, layer):
    scheme = preset("W8A8")
    only_inputs = Quantized(type(scheme)(targets=("Linear",), input_activations=scheme.input_activations))
    before = layer.weight.clone()

    state.set_quantized(layer, only_inputs)

    assert torch.equal(layer.weight, before)
    assert state.report["layer"].status == "quantized"


def test_a_new_weight_is_written_and_measured(state, layer):
    state.set_weight(layer, layer.weight * (torch.arange(64) % 2))

    assert state.report["layer"].status == "changed"
    assert state.report["layer"].sparsity == pytest.approx(0.5)
    assert (layer.weight[:, ::2] == 0).all()


def test_a_range_that_was_chosen_for_another_weight_is_forgotten(state, layer):
    state.clip_ranges["layer"] = state.clip_ranges["other"] = layer.weight.amin(), layer.weight.amax()

    state.set_weight(layer, layer.weight * 2)

    assert list(state.clip_ranges) == ["other"]


def test_setting_a_weight_to_itself_keeps_it(state, layer):
    before = layer.weight.clone()

    state.set_weight(layer, layer.weight)

    assert torch.equal(layer.weight, before)
    assert state.report["layer"].weight_error == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_and_not_written(state, layer, value):
    before = layer.weight.clone()
    bad = before.clone()
    bad[3, 5] = value

    with pytest.raises(NumericsError, match="layer"):
        state.set_weight(layer, bad)

    assert torch.equal(layer.weight, before)
    assert state.report["layer"].status == "untouched"


def test_skipping_and_falling_back_have_reasons(state, layer):
    state.skip(layer, "too small")
    assert (state.report["layer"].status, state.report["layer"].reason) == ("untouched", "too small")

    state.fall_back(layer, "not positive definite")
    assert (state.report["layer"].status, state.report["layer"].reason) == ("fallback", "not positive definite")


def test_seconds_add_up(state, layer):
    for _ in range(2):
        with state.timed(layer):
            pass

    assert state.report["layer"].seconds > 0


def test_scratch_is_by_modifier_and_layer(layer):
    scratch, one, two = Scratch(), object(), object()
    other = Layer("other", layer.module, ())

    scratch[one, layer] = 1
    scratch[two, layer] = 2
    scratch[one, other] = 3

    assert (scratch[one, layer], scratch[two, layer], scratch[one, other]) == (1, 2, 3)
    assert (two, other) not in scratch
    assert scratch.pop(one, layer) == 1
    assert (one, layer) not in scratch
    assert len(scratch) == 2
    with pytest.raises(KeyError):
        scratch.pop(one, layer)


def test_relative_error_of_nothing_is_nothing():
    zeros = torch.zeros(3, 4)

    assert relative_error(zeros, zeros) == 0
    assert relative_error(zeros, zeros + 1) > 0
    assert relative_error(torch.ones(3, 4), zeros) == 1


def test_relative_error_does_not_depend_on_scale_and_does_not_overflow():
    weight = torch.full((8, 8), 300.0, dtype=torch.float16)  # whose squares are beyond float16

    assert relative_error(weight, weight * 0.5) == pytest.approx(0.5)


def test_each_state_has_its_own_everything():
    a, b = State(model=nn.Identity()), State(model=nn.Identity())

    assert a.scratch is not b.scratch
    assert a.report is not b.report
    assert len(list(find_layers(a.model.named_modules()))) == 0
