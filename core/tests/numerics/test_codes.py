"""What is a point of a grid, and what is a scale for a tensor of some shape."""

import pytest
import torch

from coldpress.numerics import check_codes, check_input_qparams, check_qparams
from coldpress.schemes import QuantizationArgs, preset, preset_names
from coldpress.testing import draw
from coldpress.testing.rounding import rounded_weight

INT4 = QuantizationArgs(num_bits=4, group_size=16)
ASYMMETRIC = QuantizationArgs(num_bits=4, group_size=16, symmetric=False)
SHAPE = (6, 32)


@pytest.mark.parametrize("name", preset_names())
def test_what_rounding_gives_is_what_every_preset_implies(name):
    scheme = preset(name)
    for dtype in (torch.float32, torch.bfloat16):
        rounded_weight(draw(128, 256, dtype=dtype), scheme).check((128, 256))


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        (torch.zeros(1, 32, dtype=torch.int8), r"the shape of the codes is \(1, 32\), and must be \(6, 32\)"),
        (torch.zeros(6, 32, dtype=torch.int32), "torch.int32, those of int4 are torch.int8"),
        (torch.full((6, 32), 8, dtype=torch.int8), "goes from -8 to 7: they go from 8 to 8"),
    ],
)
def test_codes_off_the_grid_are_refused(codes, said):
    with pytest.raises(ValueError, match=said):
        check_codes(codes, INT4, SHAPE)


def test_floating_point_codes_are_points_of_their_grid():
    float4 = QuantizationArgs(num_bits=4, type="float", strategy="channel")
    good = torch.tensor([[0.0, 0.5, -1.5, 6.0]]).to(torch.float8_e4m3fn)

    check_codes(good, float4, (1, 4))
    for bad, said in ((5.0, "not points of the grid of float4"), (float("nan"), "not finite")):
        with pytest.raises(ValueError, match=said):
            check_codes(torch.tensor([[0.0, 0.5, bad, 6.0]]).to(torch.float8_e4m3fn), float4, (1, 4))


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (None, "there is no scale"),
        (torch.ones(6, 1), r"the shape of the scale is \(6, 1\), and must be \(6, 2\)"),
        (torch.ones(6, 2, dtype=torch.int32), "not floating-point"),
        (torch.zeros(6, 2), "not positive and finite"),
        (torch.full((6, 2), float("nan")), "not positive and finite"),
        (-torch.ones(6, 2), "not positive and finite"),
    ],
)
def test_a_scale_that_does_not_fit_is_refused(scale, said):
    with pytest.raises(ValueError, match=said):
        check_qparams(scale, None, INT4, SHAPE)


@pytest.mark.parametrize(
    ("args", "point", "said"),
    [
        (ASYMMETRIC, None, "no zero point, and the scheme is asymmetric"),
        (ASYMMETRIC, torch.zeros(6, 1, dtype=torch.int8), r"and must be \(6, 2\)"),
        (ASYMMETRIC, torch.full((6, 2), 9, dtype=torch.int8), "not between -8 and 7"),
        (ASYMMETRIC, torch.full((6, 2), 1.5), "whole numbers are stored"),
        (INT4, torch.ones(6, 2, dtype=torch.int8), "the scheme is symmetric"),
    ],
)
def test_a_zero_point_that_does_not_fit_is_refused(args, point, said):
    with pytest.raises(ValueError, match=said):
        check_qparams(torch.ones(6, 2), point, args, SHAPE)


def test_zero_points_between_whole_numbers_are_for_schemes_that_say_so():
    args = QuantizationArgs(num_bits=4, group_size=16, symmetric=False, zp_dtype=torch.float32)

    check_qparams(torch.ones(6, 2), torch.full((6, 2), 1.5), args, SHAPE)


def test_scales_of_two_levels_have_a_global_one_and_are_rounded():
    args = QuantizationArgs(num_bits=4, type="float", strategy="tensor_group", group_size=16)

    check_qparams(torch.ones(6, 2), None, args, SHAPE, global_scale=torch.ones(1))
    for scale, factor, said in (
        (torch.ones(6, 2), None, "no global scale"),
        (torch.ones(6, 2), torch.ones(()), r"the shape of the global scale is \(\)"),
        (torch.ones(6, 2), torch.zeros(1), "global scale is not positive"),
        (torch.full((6, 2), 1.01), torch.ones(1), "not rounded to float8_e4m3fn"),
    ):
        with pytest.raises(ValueError, match=said):
            check_qparams(scale, None, args, SHAPE, global_scale=factor)
    with pytest.raises(ValueError, match="scales have one level"):
        check_qparams(torch.ones(6, 2), None, INT4, SHAPE, global_scale=torch.ones(1))


def test_scales_that_are_stored_as_exponents_are_powers_of_two():
    args = preset("MXFP4").weights

    check_qparams(torch.full((2, 1), 0.25), None, args, (2, 32))
    with pytest.raises(ValueError, match="not rounded to powers of two"):
        check_qparams(torch.full((2, 1), 0.3), None, args, (2, 32))


def test_static_inputs_have_one_scale_and_others_have_none():
    static = QuantizationArgs(strategy="tensor")

    check_input_qparams(torch.ones(1), torch.zeros(1, dtype=torch.int8), None, static)
    check_input_qparams(None, None, None, QuantizationArgs(strategy="token", dynamic=True))
    with pytest.raises(ValueError, match="no scale"):
        check_input_qparams(None, None, None, static)
    with pytest.raises(ValueError, match="no static inputs"):
        check_input_qparams(torch.ones(1), None, None, None)
