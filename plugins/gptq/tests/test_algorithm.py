"""Theorems of GPTQ, and an oracle that is written as the paper writes it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coldpress import QuantizationArgs
from coldpress.numerics import calculate_qparams, dequantize, group, quantize
from coldpress.testing import draw, random_gram
from coldpress_gptq.algorithm.solver import (
    Grid,
    Problem,
    gptq,
    loss_of,
    measured,
    prepare,
    scale_rows,
    searched_qparams,
    solve,
)

GRIDS = {
    "int4 group": QuantizationArgs(num_bits=4, group_size=16),
    "int4 group asymmetric": QuantizationArgs(num_bits=4, group_size=16, symmetric=False),
    "int3 channel": QuantizationArgs(num_bits=3, strategy="channel"),
    "int8 tensor asymmetric": QuantizationArgs(num_bits=8, strategy="tensor", symmetric=False),
    "int2 block": QuantizationArgs(num_bits=2, strategy="block", block_structure=(8, 24)),
    "fp8 channel": QuantizationArgs(num_bits=8, type="float", strategy="channel"),
    "fp4 group": QuantizationArgs(num_bits=4, type="float", group_size=16),
}
over_grids = pytest.mark.parametrize("args", GRIDS.values(), ids=GRIDS)
INT4 = GRIDS["int4 group"]


def minmax_qparams(weight, args):
    grouped = group(weight, args)
    return calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)


def solved(weight, gram, args, *, by_activity=True, dampening_frac=0.01, block_size=128, keep_zeros=False):
    """The rounded weights."""
    prepared = prepare(gram, dampening_frac=dampening_frac, by_activity=by_activity)
    qparams = minmax_qparams(weight, args)
    ((solution,),) = gptq([Problem([weight], [qparams], prepared)], args, block_size=block_size, keep_zeros=keep_zeros)
    return dequantize(solution.codes, *qparams, args), solution


def error(weight, rounded, gram):
    change = (weight - rounded).double()
    return float((change @ gram.double() * change).sum())


def rounded_to_nearest(weight, args):
    scale, point = minmax_qparams(weight, args)
    return dequantize(quantize(weight, scale, point, args), scale, point, args)


def textbook(weight, gram, args, *, order, dampening_frac=0.01):
    """The paper's algorithm 1 in float64, without blocks: Cholesky of the inverse, errors carried forward."""
    hessian = gram.double()[order][:, order]
    hessian += dampening_frac * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    scale, point = minmax_qparams(weight, args)
    left = weight.double()[:, order].clone()
    found = torch.zeros_like(left)
    for place, column in enumerate(order.tolist()):
        probe = weight.double().clone()
        probe[:, column] = left[:, place]
        codes = quantize(probe, scale.double(), point, args)
        found[:, place] = dequantize(codes, scale.double(), point, args)[:, column]
        step = (left[:, place] - found[:, place]) / upper[place, place]
        left[:, place:] -= step[:, None] * upper[place, place:]
    return found[:, order.argsort()]


@over_grids
@pytest.mark.parametrize("by_activity", [True, False])
def test_codes_are_those_of_the_textbook(args, by_activity):
    weight, gram = draw(24, 48), random_gram(48)
    prepared = prepare(gram, dampening_frac=0.01, by_activity=by_activity)
    scale, point = minmax_qparams(weight, args)
    rows = [scale_rows(part, args, weight.shape) for part in (scale, point)]

    codes = solve([[weight]], [prepared], Grid(args, *rows), block_size=32, keep_zeros=False).codes
    found, expected = dequantize(codes, scale, point, args), textbook(weight, gram, args, order=prepared.order).float()

    assert (~torch.isclose(found, expected, rtol=1e-4, atol=1e-5)).float().mean() < 0.01  # near ties float32 may differ


@over_grids
def test_white_inputs_give_rounding(args):
    weight = draw(24, 48)

    assert torch.equal(solved(weight, torch.eye(48) * 3, args)[0], rounded_to_nearest(weight, args))


@over_grids
@pytest.mark.parametrize("block_size", [1, 7, 32, 40, 1000])
def test_block_size_is_only_speed(args, block_size):
    weight, gram = draw(24, 144), random_gram(144)

    found, _ = solved(weight, gram, args, block_size=block_size)
    expected, _ = solved(weight, gram, args, block_size=128)

    assert (~torch.isclose(found, expected)).float().mean() < 0.005


def test_permuting_columns_permutes_the_result():
    args = QuantizationArgs(num_bits=4, strategy="channel")
    weight, gram = draw(16, 40), random_gram(40)
    turned = torch.randperm(40, generator=torch.Generator().manual_seed(5))

    found, _ = solved(weight[:, turned], gram[turned][:, turned], args)

    torch.testing.assert_close(found, solved(weight, gram, args)[0][:, turned])


@over_grids
def test_the_loss_is_the_error_of_the_outputs(args):
    weight, gram = draw(24, 48), random_gram(48)
    found, solution = solved(weight, gram, args, dampening_frac=1e-6)

    assert float(solution.loss.sum()) == pytest.approx(error(weight, found, gram), rel=1e-3)
    prepared = prepare(gram, dampening_frac=1e-6, by_activity=True)
    torch.testing.assert_close(solution.loss, loss_of(weight, found, prepared), rtol=1e-3, atol=0)


@over_grids
def test_the_loss_of_rounding_is_known_too(args):
    weight, gram = draw(24, 48), random_gram(48)
    _, solution = solved(weight, gram, args, dampening_frac=1e-6)

    expected = error(weight, rounded_to_nearest(weight, args), gram)
    assert float(solution.rounding_loss.sum()) == pytest.approx(expected, rel=0.02)  # on a CPU in 16 bits


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 20),
    groups=st.integers(1, 5),
    seed=st.integers(0, 2**20),
    tokens=st.integers(1, 300),
    name=st.sampled_from(["int4 group", "int4 group asymmetric", "int3 channel", "fp8 channel", "fp4 group"]),
)
def test_it_is_never_worse_than_rounding(rows, groups, seed, tokens, name):
    """Under the dampened matrix that it minimizes."""
    args, width = GRIDS[name], 16 * groups
    weight, gram = draw(rows, width, seed=seed), random_gram(width, tokens=tokens, seed=seed)
    found, _ = solved(weight, gram, args)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(width)

    assert error(weight, found, damped) <= error(weight, rounded_to_nearest(weight, args), damped) * (1 + 1e-4) + 1e-6


@over_grids
def test_every_row_is_the_better_one_of_the_loop_and_rounding(args):
    weight = draw(64, 48)
    scale, point = minmax_qparams(weight, args)
    scale = scale / (1.6 if args.num_bits == 8 else 3)  # clips weights, and the loop makes later columns pay for that
    prepared = prepare(random_gram(48), dampening_frac=0.01, by_activity=True)
    rows = [scale_rows(part, args, (64, 48)) for part in (scale, point)]
    loop = solve([[weight]], [prepared], Grid(args, *rows), block_size=128, keep_zeros=False).loss
    nearest = measured(quantize(weight, scale, point, args), weight, (scale, point), prepared, args).loss

    ((found,),) = gptq([Problem([weight], [(scale, point)], prepared)], args, block_size=128, keep_zeros=False)

    assert 0 < (nearest < loop).sum() < 64
    torch.testing.assert_close(found.loss, torch.minimum(loop, nearest), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        measured(found.codes, weight, (scale, point), prepared, args).loss, found.loss, rtol=1e-4, atol=0
    )


def test_it_is_much_better_than_rounding_in_the_mean():
    ratios = []
    for seed in range(10):
        weight, gram = draw(32, 96, seed=seed), random_gram(96, seed=seed)
        found, _ = solved(weight, gram, INT4)
        ratios.append(error(weight, found, gram) / error(weight, rounded_to_nearest(weight, INT4), gram))

    assert sum(ratios) / 10 < 0.5


@over_grids
def test_matrices_that_share_an_input_may_be_solved_together(args):
    weights, gram = [draw(rows, 48, seed=rows) for rows in (8, 24, 16)], random_gram(48)
    prepared = prepare(gram, dampening_frac=0.01, by_activity=True)
    qparams = [minmax_qparams(weight, args) for weight in weights]

    (together,) = gptq([Problem(weights, qparams, prepared)], args, block_size=32, keep_zeros=False)

    for weight, params, solution in zip(weights, qparams, together, strict=True):
        ((alone,),) = gptq([Problem([weight], [params], prepared)], args, block_size=32, keep_zeros=False)
        assert (solution.codes.float() != alone.codes.float()).float().mean() < 0.005
        torch.testing.assert_close(solution.loss, alone.loss, rtol=1e-2, atol=1e-3)


@over_grids
@pytest.mark.parametrize("keep_zeros", [False, True])
def test_inputs_may_be_solved_together(args, keep_zeros):
    """Each has its own Gram matrix, order of columns and scales, and as many rows as the others, in other matrices."""
    problems = []
    for seed, rows in enumerate([(40,), (24, 16), (8, 32)]):
        weights = [draw(size, 48, seed=size) for size in rows]
        for weight in weights:
            weight[:, seed::4] = 0
        prepared = prepare(random_gram(48, seed=10 * seed), dampening_frac=0.01, by_activity=True)
        problems.append(Problem(weights, [minmax_qparams(weight, args) for weight in weights], prepared))

    together = gptq(problems, args, block_size=40, keep_zeros=keep_zeros)

    for problem, found in zip(problems, together, strict=True):
        (alone,) = gptq([problem], args, block_size=40, keep_zeros=keep_zeros)
        for ours, expected, weight in zip(found, alone, problem.weights, strict=True):
            assert ours.codes.shape == weight.shape
            assert (ours.codes.float() != expected.codes.float()).float().mean() < 0.005
            torch.testing.assert_close(ours.loss, expected.loss, rtol=1e-2, atol=1e-3)


@over_grids
def test_rows_do_not_know_each_other(args):
    if args.strategy in ("tensor", "block"):
        pytest.skip("rows share a scale")
    weight, gram = draw(24, 48), random_gram(48)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))

    torch.testing.assert_close(solved(weight[order], gram, args)[0], solved(weight, gram, args)[0][order])


@over_grids
def test_zeros_are_kept_when_asked_for(args):
    weight, gram = draw(24, 48), random_gram(48)
    weight[draw(24, 48, seed=9) > 0] = 0

    kept, _ = solved(weight, gram, args, keep_zeros=True)
    free, _ = solved(weight, gram, args, keep_zeros=False)

    assert not kept[weight == 0].any()
    assert free[weight == 0].any()


@over_grids
def test_codes_lie_on_the_grid(args):
    weight, gram = draw(24, 48) * 100, random_gram(48)
    _, solution = solved(weight, gram, args)

    codes = solution.codes.float()
    assert torch.isfinite(codes).all()
    assert codes.min() >= -(2.0 ** (args.num_bits - 1)) or args.type == "float"
    assert solution.codes.shape == weight.shape


@pytest.mark.parametrize("gram", [torch.zeros(48, 48), torch.ones(48, 48)], ids=["dead", "constant"])
def test_degenerate_inputs_give_finite_weights(gram):
    found, _ = solved(draw(24, 48), gram, INT4)

    assert torch.isfinite(found).all()


def test_one_token_is_enough():
    found, _ = solved(draw(24, 48), random_gram(48, tokens=1), INT4)

    assert torch.isfinite(found).all()


def test_dead_inputs_are_rounded():
    weight, gram = draw(24, 48), random_gram(48)
    gram[5], gram[:, 5] = 0, 0

    torch.testing.assert_close(solved(weight, gram, INT4)[0][:, 5], rounded_to_nearest(weight, INT4)[:, 5])


def test_searched_scales_lose_no_more_than_those_of_the_range():
    weight, importance = draw(24, 48), torch.linspace(0, 4, 48)
    for args in GRIDS.values():
        scale, point = searched_qparams(weight, args, importance)
        found = dequantize(quantize(weight, scale, point, args), scale, point, args)
        plain = rounded_to_nearest(weight, args)

        lost, before = (((weight - w).square() * importance).sum() for w in (found, plain))
        assert lost <= before * (1 + 1e-5)
        assert scale.shape == minmax_qparams(weight, args)[0].shape
