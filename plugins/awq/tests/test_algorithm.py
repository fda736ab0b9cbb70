"""Theorems of AWQ."""

import pytest
import torch

from coldpress import QuantizationArgs, preset
from coldpress.numerics import calculate_global_scale, calculate_qparams, fake_quantize, group
from coldpress_awq.algorithm import Reader, best, candidate_scales, clip_range, losses, relative_size, rounded

SCHEMES = {
    "group": QuantizationArgs(num_bits=4, strategy="group", group_size=16),
    "asymmetric": QuantizationArgs(num_bits=4, symmetric=False, strategy="group", group_size=16),
    "channel": QuantizationArgs(num_bits=3, strategy="channel"),
    "tensor": QuantizationArgs(num_bits=8, strategy="tensor"),
    "block": QuantizationArgs(num_bits=8, type="float", strategy="block", block_structure=[16, 24]),
    "fp8": preset("FP8_DYNAMIC").weights,
    "nvfp4": preset("NVFP4A16").weights,
    "mxfp4": preset("MXFP4A16").weights,
}
over_schemes = pytest.mark.parametrize("args", SCHEMES.values(), ids=SCHEMES)


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(seed=0, tokens=200, width=64):
    x = random(seed, tokens, width)
    x[:, ::9] *= 20
    return x


def reader(args, x=None, weight=None):
    x = inputs() if x is None else x
    weight = random(1, 40, x.shape[1]) if weight is None else weight
    return Reader(weight, x.t() @ x, torch.arange(x.shape[1]), args)


def slowly_rounded(weight, args):
    grouped = group(weight, args)
    factor = calculate_global_scale(weight.abs().amax(), args) if args.strategy == "tensor_group" else None
    params = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args, global_scale=factor)
    return fake_quantize(weight, *params, args, global_scale=factor)


@over_schemes
def test_what_is_rounded_is_what_a_quantizer_makes(args):
    weight = random(0, 40, 64)

    torch.testing.assert_close(rounded(weight, args), slowly_rounded(weight, args))


@over_schemes
def test_no_group_loses_by_being_clipped(args):
    weight, importance = random(0, 40, 64), inputs().square().sum(0)
    whole = group(weight, args)
    factor = calculate_global_scale(weight.abs().amax(), args) if args.strategy == "tensor_group" else None

    low, high = clip_range(weight, args, importance, global_scale=factor)
    clipped, before = (
        group((rounded(weight, args, importance=costs) - weight).square() * importance, args).sum(-1)
        for costs in (importance, None)
    )

    assert (clipped <= before * 1.0001).all()
    assert args.num_bits == 8 or (high - low).sum() < 0.99 * (whole.amax(-1) - whole.amin(-1)).sum()


@over_schemes
def test_the_loss_on_the_gram_matrix_is_the_error_of_the_outputs(args):
    x, weight = inputs(), random(1, 40, 64)
    scales = torch.rand(5, 64, generator=torch.Generator().manual_seed(2)) + 0.5

    found = losses(reader(args, x, weight), scales)

    for loss, scale in zip(found, scales, strict=True):
        out = (x / scale) @ slowly_rounded(weight * scale, args).t()
        torch.testing.assert_close(loss, (out - x @ weight.t()).square().sum(), rtol=1e-3, atol=0)


def test_in_16_bits_it_is_so_to_a_hundredth():
    x, weight = inputs(), random(1, 40, 64)
    scales = torch.rand(5, 64, generator=torch.Generator().manual_seed(2)) + 0.5

    found = losses(reader(SCHEMES["group"], x, weight.bfloat16()), scales)

    exact = losses(reader(SCHEMES["group"], x, weight.bfloat16().float()), scales)
    torch.testing.assert_close(found, exact, rtol=1e-2, atol=0)


def test_some_rows_stand_for_all():
    x, weight = inputs(), random(1, 2000, 64)
    scales, _ = candidate_scales(x.square().mean(0).sqrt(), torch.ones(64), n_grid=10, duo_scaling=False)

    few, all_rows = (losses(reader(SCHEMES["group"], x, weight), scales, rows=rows) for rows in (128, 9999))

    torch.testing.assert_close(few, all_rows, rtol=0.1, atol=0)


def test_value_heads_that_feed_several_inputs_see_one_scale_each():
    x, weight = inputs(width=64), random(1, 40, 64)
    channels = torch.arange(32).repeat(2)
    channels[5] = -1  # this input sees no scale
    scale = torch.rand(1, 32, generator=torch.Generator().manual_seed(2)) + 0.5
    spread = scale[0].repeat(2)
    spread[5] = 1

    found = losses(Reader(weight, x.t() @ x, channels, SCHEMES["group"]), scale)

    torch.testing.assert_close(found, losses(reader(SCHEMES["group"], x, weight), spread[None]))


@pytest.mark.parametrize("duo", [True, False, "both"])
def test_candidates_begin_with_one_and_have_no_size(duo):
    scales, names = candidate_scales(random(0, 64).abs(), random(1, 64).abs(), n_grid=20, duo_scaling=duo)

    assert (scales[0] == 1).all()
    assert len(scales) == len(names) == {True: 21, False: 20, "both": 20}[duo]
    torch.testing.assert_close(scales.amax(1) * scales.amin(1), torch.ones(len(scales)))
    assert names[0] == {"ratio": 0.0, "duo_scaling": False}


def test_ratios_go_from_the_weights_to_the_activations():
    x, w = random(0, 64).abs() + 0.1, random(1, 64).abs() + 0.1

    scales, _ = candidate_scales(x, w, n_grid=2, duo_scaling=True)

    for found, expected in zip(scales[1:], (1 / (w + 1e-4), (x / (w + 1e-4)).sqrt()), strict=True):
        assert ((found / expected) - (found / expected)[0]).abs().max() < 1e-4 * (found / expected)[0]


def test_channels_without_activity_have_a_finite_scale():
    x = random(0, 64).abs()
    x[3] = 0

    scales, _ = candidate_scales(x, torch.zeros(64), n_grid=20, duo_scaling="both")

    assert scales.isfinite().all()
    assert (scales > 0).all()


def test_weights_are_seen_against_the_largest_of_their_group():
    weight = random(0, 40, 64)
    weight[:, 16:32] *= 1000

    found = relative_size(weight, SCHEMES["group"])

    torch.testing.assert_close(found[16:32], relative_size(weight[:, 16:32], SCHEMES["group"]), rtol=1e-4, atol=1e-4)
    assert (found <= 1).all()


def test_the_best_never_loses_more_than_leaving_it_alone_and_outliers_make_it_lose_much_less():
    both = [reader(SCHEMES["group"]), reader(SCHEMES["asymmetric"], weight=random(5, 24, 64))]
    x = both[0].gram.diagonal().sqrt()

    scales, _ = candidate_scales(x, relative_size(both[0].weight, both[0].args), n_grid=20, duo_scaling=True)
    chosen, found = best(both, scales)

    assert found[chosen] < 0.7 * found[0]
    assert found[chosen] == found.min()


def test_inputs_without_outliers_leave_little_to_gain():
    x = random(0, 4000, 64)
    white = reader(SCHEMES["group"], x)

    scales, _ = candidate_scales(white.gram.diagonal().sqrt(), torch.ones(64), n_grid=20, duo_scaling=False)
    chosen, found = best([white], scales)

    assert found[chosen] > 0.9 * found[0]
