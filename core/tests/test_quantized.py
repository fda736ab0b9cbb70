"""A weight in memory is encoded again as it was: what codes stand for has these codes."""

import copy
import pickle

import pytest
import torch
from torch import nn

from coldpress.bases.weight_range import weight_qparams
from coldpress.numerics import calculate_global_scale, quantize
from coldpress.quantized import Quantized, encoding_of, set_encoding
from coldpress.schemes import QuantizationArgs, Scheme, preset, preset_names

ARGS = {
    **{name: preset(name).weights for name in preset_names() if preset(name).weights is not None},
    "int8 asymmetric": QuantizationArgs(num_bits=8, symmetric=False, strategy="channel"),
    "int6 a tensor": QuantizationArgs(num_bits=6),
}
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def weights(dtype):
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(128, 256, generator=generator)
    rows = plain * torch.logspace(-6, 3, 128)[:, None]
    holes = plain.clone()
    holes[3:9], holes[20, :128] = 0, 0
    return [x.to(dtype) for x in (plain, rows, holes, plain * 0, torch.full_like(plain, 0.5), plain * 1e-7)]


def quantized(weight, args):
    factor = calculate_global_scale(weight.abs().amax(), args) if args.strategy == "tensor_group" else None
    scale, point = weight_qparams(weight, args, global_scale=factor)
    codes = quantize(weight, scale, point, args, global_scale=factor)
    return Quantized(
        Scheme(targets="Linear", weights=args), codes=codes, scale=scale, zero_point=point, global_scale=factor
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("args", ARGS.values(), ids=ARGS)
def test_what_codes_stand_for_is_encoded_again(args, dtype):
    for number, weight in enumerate(weights(dtype)):
        before = quantized(weight, args)
        module, now = nn.Module(), before.weight(dtype)
        set_encoding(module, before, now)

        found = encoding_of(module).encode(now)

        assert found is not None, number
        assert torch.equal(found.weight(dtype), now)
        if number < 3:
            assert torch.equal(found.codes.float(), before.codes.float()), number
            assert torch.equal(found.codes.float().signbit(), before.codes.float().signbit()), number


@pytest.mark.parametrize("later", DTYPES, ids=str)
def test_so_it_is_after_the_model_was_put_into_another_dtype(later):
    before = quantized(weights(torch.bfloat16)[0], ARGS["W4A16"])
    module, now = nn.Module(), before.weight(torch.bfloat16)
    set_encoding(module, before, now)

    found = encoding_of(module).encode(now.to(later))

    assert torch.equal(found.codes, before.codes)


@pytest.mark.parametrize("change", [lambda w: w * 2, lambda w: w + 1e-2, lambda w: w[:64], lambda w: w.T])
def test_a_weight_that_was_changed_has_no_codes(change):
    before = quantized(weights(torch.float32)[0], ARGS["W4A16"])
    module, now = nn.Module(), before.weight(torch.float32)
    set_encoding(module, before, now)

    assert encoding_of(module).encode(change(now)) is None


def test_zeros_that_are_written_later_are_on_a_grid_with_zero():
    before = quantized(weights(torch.float32)[0], ARGS["W4A16"])
    module, now = nn.Module(), before.weight(torch.float32)
    set_encoding(module, before, now)
    now[:, ::2] = 0

    assert torch.equal(encoding_of(module).encode(now).weight(torch.float32), now)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_of_a_module_has_its_encoding_and_the_state_does_not(copied):
    before = quantized(weights(torch.float32)[0], ARGS["W4A16"])
    module = nn.Linear(256, 128, bias=False)
    set_encoding(module, before, before.weight(torch.float32))

    other = copied(module)

    assert torch.equal(encoding_of(other).encode(before.weight(torch.float32)).codes, before.codes)
    assert list(other.state_dict()) == ["weight"]
    set_encoding(other, None, other.weight)
    assert encoding_of(other) is None
    assert encoding_of(module) is not None


def test_a_layer_whose_inputs_only_are_quantized_needs_no_codes():
    inputs = QuantizationArgs(dynamic=True, strategy="token")
    before = Quantized(Scheme(targets="Linear", input_activations=inputs))
    module = nn.Module()
    set_encoding(module, before, torch.zeros(2, 2))

    assert encoding_of(module).encode(torch.ones(3, 3)).scheme.input_activations is inputs
