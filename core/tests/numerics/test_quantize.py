"""What holds for quantization whatever the library does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coldpress.errors import SchemeError
from coldpress.numerics import calculate_qparams, dequantize, dynamic_qparams, fake_quantize, group, quantize
from coldpress.numerics.codes import check_qparams
from coldpress.schemes import QuantizationArgs


@given(
    seed=st.integers(0, 10**9),
    num_bits=st.integers(2, 8),
    symmetric=st.booleans(),
    strategy=st.sampled_from(["tensor", "channel", "group", "block"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=200, deadline=None)
def test_inside_the_range_the_error_is_at_most_half_a_step(seed, num_bits, symmetric, strategy, dtype):
    settings_of = {"group": {"group_size": 4}, "block": {"block_structure": (4, 3)}}
    args = QuantizationArgs(num_bits=num_bits, symmetric=symmetric, strategy=strategy, **settings_of.get(strategy, {}))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 12, generator=generator).to(dtype)
    grouped = group(x, args)
    scale, zero_point = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    half = group(x * 0, args).double() + scale.double().unsqueeze(-1) / 2
    points = zero_point.double().unsqueeze(-1)
    low, high = ((end - points) * 2 * half for end in (-(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1))

    codes = quantize(x, scale, zero_point, args)
    restored = group(dequantize(codes, scale, zero_point, args, dtype=dtype), args)

    # The quotient, the product and the scale are rounded to the dtype, each by eps of numbers up to 2^bits steps.
    rounding = torch.finfo(dtype).eps * 2**num_bits * 2 * half
    error = (restored.double() - grouped.double()).abs()
    inside = (grouped.double() >= low) & (grouped.double() <= high)
    assert (error[inside] <= (half + rounding)[inside]).all()


@given(seed=st.integers(0, 10**9), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=50, deadline=None)
def test_float8_loses_at_most_a_sixteenth(seed, dtype):
    args = QuantizationArgs(type="float", strategy="channel")
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(seed)).to(dtype)
    scale, zero_point = calculate_qparams(x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), args)

    restored = fake_quantize(x, scale, zero_point, args)

    bound = x.abs().double() * (2**-4 + 3 * torch.finfo(dtype).eps) + scale.double() * 2**-10
    assert ((restored.double() - x.double()).abs() <= bound).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_numbers_on_the_grid_are_kept(symmetric):
    args = QuantizationArgs(num_bits=4, symmetric=symmetric, strategy="channel")
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(3, 1)  # [3, 16]
    scale = torch.tensor([[0.5], [2.0], [0.125]])
    zero_point = torch.tensor([[0], [0], [0]] if symmetric else [[-8], [3], [7]], dtype=torch.int8)

    x = dequantize(codes, scale, zero_point, args)

    assert torch.equal(quantize(x, scale, zero_point, args), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_with_signed_scales_the_number_furthest_from_zero_is_at_the_further_end_of_the_grid(bits):
    args = QuantizationArgs(num_bits=bits, strategy="channel", signed_scales=True)
    x = torch.tensor([[0.5, -1.0, 4.0], [0.5, -4.0, 1.0], [0.0, 0.0, 0.0]])

    scale, zero_point = calculate_qparams(x.amin(-1), x.amax(-1), args)
    codes = quantize(x, scale[:, None], zero_point[:, None], args)

    least = -(2 ** (bits - 1))
    assert torch.equal(scale[:2], torch.tensor([4.0, -4.0]) / least)
    assert scale[2] > 0
    assert [int(codes[0, 2]), int(codes[1, 1])] == [least, least]
    check_qparams(scale[:, None], None, args, (3, 3))
    assert torch.equal(dequantize(codes, scale[:, None], zero_point[:, None], args)[[0, 1], [2, 1]], x[[0, 1], [2, 1]])


def test_scales_of_other_grids_have_one_sign():
    for args in (QuantizationArgs(num_bits=4, symmetric=False), QuantizationArgs(type="float")):
        with pytest.raises(ValueError, match="the scale is not positive"):
            check_qparams(torch.tensor([-1.0]), torch.zeros(1, dtype=torch.int8), args, (2, 4))


def test_zero_stays_zero():
    for symmetric in (True, False):
        args = QuantizationArgs(num_bits=3, symmetric=symmetric, strategy="channel")
        x = torch.tensor([[0.0, 1.0, 5.0], [0.0, -3.0, -2.0], [0.0, 0.0, 0.0]])

        scale, zero_point = calculate_qparams(x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), args)

        assert fake_quantize(x, scale, zero_point, args)[:, 0].tolist() == [0, 0, 0]


def test_a_scale_without_zero_point_is_one_with_zeros():
    args = QuantizationArgs(num_bits=4, group_size=4)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    scale, zero_point = calculate_qparams(group(x, args).amin(-1), group(x, args).amax(-1), args)

    codes = quantize(x, scale, None, args)

    assert torch.equal(codes, quantize(x, scale, zero_point, args))
    assert torch.equal(dequantize(codes, scale, None, args), dequantize(codes, scale, zero_point, args))


def test_nothing_that_is_handed_in_is_changed():
    args = QuantizationArgs(num_bits=4, symmetric=False, group_size=4)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    scale, zero_point = dynamic_qparams(x, args)
    codes = quantize(x, scale, zero_point, args)
    before = [t.clone() for t in (x, scale, zero_point, codes)]

    fake_quantize(x, scale, zero_point, args)
    dequantize(codes, scale, zero_point, args)
    dequantize(x, scale, zero_point, args)

    assert all(torch.equal(*pair) for pair in zip(before, (x, scale, zero_point, codes), strict=True))


@pytest.mark.parametrize(
    "args",
    [
        QuantizationArgs(strategy="token", dynamic=True),
        QuantizationArgs(strategy="tensor", dynamic=True),
        QuantizationArgs(group_size=4, dynamic=True),
    ],
    ids=lambda args: args.strategy,
)
def test_no_token_is_no_error(args):
    x = torch.empty(0, 8)

    assert fake_quantize(x, *dynamic_qparams(x, args), args).shape == (0, 8)


def test_a_group_is_a_view():
    x = torch.zeros(4, 8)

    for args in (QuantizationArgs(), QuantizationArgs(strategy="channel"), QuantizationArgs(group_size=4)):
        assert group(x, args).data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("width", "message"),
    [
        (576, "576 columns do not split into groups of 128 (16, 32, 48, 64, 96, 192 would)"),
        (33, "33 columns do not split into groups of 128 (no usual size does); choose a group_size that divides, -1"),
    ],
)
def test_groups_that_do_not_divide_are_answered_with_those_that_do(width, message):
    with pytest.raises(SchemeError) as caught:
        group(torch.zeros(2, width), QuantizationArgs(group_size=128))

    assert str(caught.value).startswith(message)


def test_heads_are_not_columns_of_a_matrix():
    with pytest.raises(SchemeError, match="groups the heads"):
        group(torch.zeros(2, 4), QuantizationArgs(strategy="attn_head"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_of_float8_are_the_numbers_that_a_cast_gives(dtype):
    args = QuantizationArgs(num_bits=8, type="float", strategy="channel")
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(2, 128)

    for some in (codes, codes[:, ::2], codes.t()):
        found = dequantize(some, torch.ones(len(some), 1, dtype=dtype), None, args)

        assert torch.equal(found.nan_to_num(9999.0), some.to(dtype).nan_to_num(9999.0))
        assert found.isnan().sum() == some.to(dtype).isnan().sum()
