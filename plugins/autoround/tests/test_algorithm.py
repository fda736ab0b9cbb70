"""The quantizer that descent learns: where it starts, its gradients, and what a step does."""

import pytest
import torch

from coldpress.numerics import calculate_qparams, dequantize, group, quantize, ungrouped
from coldpress.plugin import QuantizationArgs
from coldpress.schemes import number_format, preset
from coldpress_autoround.algorithm.rounding import (
    LEAST,
    MOST,
    Learned,
    beginning,
    codes_of,
    dense,
    fixed,
    rounded,
    stepped,
)
from coldpress_autoround.algorithm.rounding import signs as signs_of
from coldpress_autoround.algorithm.start import gptq_codes
from coldpress_autoround.descent import minibatches

INTEGERS = [
    QuantizationArgs(num_bits=bits, symmetric=symmetric, group_size=16)
    for bits in (2, 4, 8)
    for symmetric in (True, False)
]
SIGNED = [QuantizationArgs(num_bits=bits, group_size=16, signed_scales=True) for bits in (2, 4)]
FLOATS = [preset(name).weights for name in ("FP8", "FP8_DYNAMIC", "MXFP4", "NVFP4A16", "FP8_BLOCK")]
EVERY = [*INTEGERS, *SIGNED, *FLOATS]


def named(args):
    sides = "signed" if args.signed_scales else "symmetric" if args.symmetric else "asymmetric"
    return f"{args.type}{args.num_bits}-{args.strategy}-{sides}"


def weight_of(args, dtype=torch.float32):
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    grouped = group(weight, args)
    factor = torch.tensor([300.0]) if args.strategy == "tensor_group" else None
    return weight, fixed(weight, grouped.amin(-1), grouped.amax(-1), args, global_scale=factor), factor


@pytest.mark.parametrize("args", EVERY, ids=named)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_begins_with_rounding_to_nearest(args, dtype):
    weight, one, factor = weight_of(args, dtype)
    grouped = group(weight, args)
    scale, point = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args, global_scale=factor)
    wide = weight.float(), scale.to(dtype).float()
    codes = quantize(*wide, point, args, global_scale=factor)

    found = rounded(one, beginning(one))
    assert torch.equal(found.scale, scale.to(dtype))
    assert torch.equal(found.zero_point, point)
    assert torch.equal(codes_of(one, found).float(), codes.float())
    plain = dequantize(codes, wide[1], point, args, dtype=dtype, global_scale=factor)
    assert torch.equal(dense(one, found), plain)


@pytest.mark.parametrize("args", EVERY, ids=named)
def test_an_offset_of_a_half_moves_a_weight_by_at_most_one_code(args):
    _, one, _ = weight_of(args)
    start, grid = beginning(one), number_format(args)
    first, up = rounded(one, start), rounded(one, start._replace(offsets=start.offsets + 0.4999))

    inside = (first.codes.abs() < min(-grid.minimum, grid.maximum) / 2) & (one.weight != 0)
    moved = (up.codes - first.codes)[inside]
    assert not args.signed_scales or bool((first.step < 0).any())
    assert bool((moved >= 0).all())
    assert 0.2 < float((moved > 0).float().mean()) < 0.8
    assert bool((moved <= 1.001 * grid.spacing(up.codes[inside])).all())


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def surrogate(weight, offsets, factors, args):
    """The same quantizer for integers with autograd, rounding passed straight through, [*q, n]."""
    grid = number_format(args)
    low, high = weight.amin(-1).clamp(max=0) * factors[0], weight.amax(-1).clamp(min=0) * factors[-1]
    if args.signed_scales:
        scale, point = torch.where(high > -low, high, low) / grid.minimum, torch.zeros_like(low)
    elif args.symmetric:
        scale, point = torch.maximum(-low, high) / ((grid.maximum - grid.minimum) / 2), torch.zeros_like(low)
    else:
        scale = (high - low) / (grid.maximum - grid.minimum)
        point = Round.apply((grid.minimum - low / scale).clamp(grid.minimum, grid.maximum))
    placed = Round.apply(weight / scale[..., None] + point[..., None] + offsets)
    return (placed.clamp(grid.minimum, grid.maximum) - point[..., None]) * scale[..., None]


@pytest.mark.parametrize("args", [*INTEGERS, *SIGNED], ids=named)
def test_signs_are_those_of_autograd_through_the_surrogate(args):
    weight, one, _ = weight_of(args)
    start, draw = beginning(one), torch.Generator().manual_seed(2)
    learned = Learned(
        torch.rand(start.offsets.shape, generator=draw) - 0.5,
        0.6 + 0.3 * torch.rand(start.factors.shape, generator=draw),
    )
    gradient = torch.randn(weight.shape, generator=draw)
    offsets, factors = (part.clone().requires_grad_() for part in learned)
    (surrogate(group(weight, args), offsets, factors, args) * group(gradient, args)).sum().backward()

    found = signs_of(one, learned, rounded(one, learned), gradient)
    torch.testing.assert_close(found.offsets, offsets.grad.sign())
    torch.testing.assert_close(found.factors, factors.grad.sign())


def test_descent_on_one_row_beats_rounding_for_correlated_inputs():
    args = QuantizationArgs(num_bits=3, group_size=64)
    weight, one, _ = weight_of(args)
    mixing = torch.eye(64) + 0.3 * torch.ones(64, 64)
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(3)) @ mixing
    errors, learned = [], beginning(one)
    for step in range(50):
        found = rounded(one, learned)
        change = (dense(one, found) - weight) @ x.t()  # [O, T]
        errors.append(float(change.square().sum()))
        learned = stepped(learned, signs_of(one, learned, found, change @ x), lr=0.02 * (1 - step / 50), minmax_lr=0.02)

    assert min(errors) < 0.2 * errors[0]


def test_factors_stay_within_their_bounds():
    _, one, _ = weight_of(INTEGERS[0])
    start = beginning(one)
    for sign, bound in ((1, LEAST), (-1, MOST)):
        direction = Learned(start.offsets, torch.full_like(start.factors, sign))
        assert bool((stepped(start, direction, lr=0.1, minmax_lr=9.0).factors == bound).all())


def test_weights_that_are_zero_do_not_move():
    args = INTEGERS[3]
    weight, _, _ = weight_of(args)
    weight[:, ::2] = 0
    grouped = group(weight, args)
    one = fixed(weight, grouped.amin(-1), grouped.amax(-1), args)
    found = signs_of(one, beginning(one), rounded(one, beginning(one)), torch.ones_like(weight))

    assert not ungrouped(found.offsets, (8, 64), args)[:, ::2].any()
    assert bool(ungrouped(found.offsets, (8, 64), args)[:, 1::2].any())


@pytest.mark.parametrize("args", EVERY, ids=named)
def test_it_may_begin_with_given_codes(args):
    _, one, _ = weight_of(args)
    first = rounded(one, beginning(one))
    wanted = codes_of(one, rounded(one, Learned(torch.full_like(one.weight, 0.3), beginning(one).factors)))

    for firmness in (0.0, 0.5):
        found = rounded(one, beginning(one, wanted, firmness=firmness))
        same = codes_of(one, found).float() == wanted.float()
        inside = ungrouped(first.inside, (8, 64), args)
        assert float(same[inside].float().mean()) > 0.98  # floats: not where the distance of neighbours changes
        if args.type == "int":
            assert bool(same.all())


def textbook_gptq(weight, gram, args, scale, dampening):
    """GPTQ as the paper has it, with the inverse, row by row."""
    gram = gram + dampening * gram.diagonal().mean() * torch.eye(len(gram))
    order = gram.diagonal().argsort(descending=True, stable=True)
    upper = torch.linalg.cholesky(torch.linalg.inv(gram[order][:, order])).t()
    left, grid, codes = weight[:, order].clone(), number_format(args), torch.zeros_like(weight)
    for j in range(len(order)):
        codes[:, order[j]] = grid.round(left[:, j] / scale[:, order[j]])
        error = (left[:, j] - codes[:, order[j]] * scale[:, order[j]]) / upper[j, j]
        left[:, j:] -= error[:, None] * upper[j, j:]
    return codes


def test_the_start_at_gptq_is_what_the_paper_has():
    draw = torch.Generator().manual_seed(4)
    weight, args = torch.randn(6, 96, generator=draw), QuantizationArgs(num_bits=4, group_size=-1)
    x = torch.randn(400, 96, generator=draw) @ (torch.eye(96) + 0.2 * torch.randn(96, 96, generator=draw))
    scale = (weight.abs().amax(1, keepdim=True) / 7.5).expand_as(weight)
    gram = x.t() @ x

    found = gptq_codes(weight, gram, args, scale=scale, zero_point=torch.zeros_like(scale))
    assert float((found == textbook_gptq(weight, gram, args, scale, 0.01)).float().mean()) > 0.99


def test_every_batch_has_its_turn_before_one_comes_again():
    found = minibatches({0: 2, 1: 1, 2: 1, 5: 2}, 2, torch.Generator().manual_seed(0))
    turn = [next(found) for _ in range(40)]

    assert all(len(set(batches)) == len(batches) for batches in turn)
    assert {index for batches in turn for index in batches} == {0, 1, 2, 5}
    again = minibatches({0: 2, 1: 1, 2: 1, 5: 2}, 2, torch.Generator().manual_seed(0))
    assert turn == [next(again) for _ in range(40)]


def test_fewer_samples_than_asked_for_are_taken_together():
    assert sorted(next(minibatches({3: 1, 4: 1}, 8, torch.Generator()))) == [3, 4]
