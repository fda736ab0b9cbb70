"""Theorems of scales that are fitted to codes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coldpress import QuantizationArgs
from coldpress.numerics import dequantize
from coldpress.testing import draw, random_gram
from coldpress_gptq.algorithm.refit import has_own_scales, refitted
from coldpress_gptq.algorithm.solver import Problem, gptq, measured, prepare, searched_qparams

GRIDS = {
    "int4 group": QuantizationArgs(num_bits=4, group_size=16),
    "int3 group asymmetric": QuantizationArgs(num_bits=3, group_size=16, symmetric=False),
    "int2 channel": QuantizationArgs(num_bits=2, strategy="channel"),
    "fp4 group": QuantizationArgs(num_bits=4, type="float", group_size=16),
}
over_grids = pytest.mark.parametrize("args", GRIDS.values(), ids=GRIDS)


def error(weight, rounded, gram):
    change = (weight - rounded).double()
    return ((change @ gram.double()) * change).sum(1)


def solved(weight, gram, args, *, dampening_frac=0.01):
    prepared = prepare(gram, dampening_frac=dampening_frac, by_activity=True)
    qparams = searched_qparams(weight, args, prepared.importance)
    ((solution,),) = gptq([Problem([weight], [qparams], prepared)], args, block_size=128, keep_zeros=False)
    return solution, qparams, prepared


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(GRIDS)),
    rows=st.integers(1, 20),
    groups=st.integers(1, 5),
    tokens=st.integers(1, 300),
    seed=st.integers(0, 2**20),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_no_row_gets_worse(name, rows, groups, tokens, seed, dtype):
    """Under the dampened matrix, with scales as they are stored."""
    args, width = GRIDS[name], 16 * groups
    weight, gram = draw(rows, width, seed=seed).to(dtype), random_gram(width, tokens=tokens, seed=seed)
    solution, (scale, point), prepared = solved(weight, gram, args)

    found, after = refitted(weight, solution, (scale, point), prepared, args)

    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(width)
    lost, before = (
        error(weight.float(), dequantize(solution.codes, s.float(), point, args), damped) for s in (found, scale)
    )
    assert found.dtype == scale.dtype
    assert found.shape == scale.shape
    assert (found > 0).all()
    assert (lost <= before * (1 + 1e-4) + 1e-6).all()
    assert after.codes is solution.codes
    again = measured(solution.codes, weight, (found, point), prepared, args)
    torch.testing.assert_close(after.loss, again.loss, rtol=1e-4, atol=1e-4)


@over_grids
def test_no_other_scale_of_any_group_is_better(args):
    weight, gram = draw(12, 48), random_gram(48)
    solution, (scale, point), prepared = solved(weight, gram, args)

    found, after = refitted(weight, solution, (scale, point), prepared, args)

    assert (after.loss < solution.loss).any()
    moved = (found != scale).any(1)
    for group in range(scale.shape[1]):
        for factor in (0.99, 1.01):
            other = found.clone()
            other[:, group] *= factor
            loss = measured(solution.codes, weight, (other, point), prepared, args).loss
            assert (loss >= after.loss * (1 - 1e-5))[moved].all()


@over_grids
def test_they_are_those_of_least_squares(args):
    """Of the outputs, a token a row, with a column for each group: what its codes put out."""
    weight, x = draw(6, 48), draw(300, 48, seed=3).double()
    solution, (scale, point), prepared = solved(weight, (x.t() @ x).float(), args, dampening_frac=1e-7)

    found, _ = refitted(weight, solution, (scale, point), prepared, args)

    groups = scale.shape[1]
    for row in range(6):
        codes = (solution.codes[row].double().view(groups, -1) - point[row].double()[:, None]) * torch.ones(
            48 // groups
        )
        parts = torch.stack([x[:, k * 48 // groups : (k + 1) * 48 // groups] @ codes[k] for k in range(groups)], 1)
        best = torch.linalg.lstsq(parts, (x @ weight[row].double())[:, None]).solution[:, 0]
        torch.testing.assert_close(found[row], best.float(), rtol=1e-3, atol=1e-5)


def test_groups_of_zeros_keep_their_scales():
    args = GRIDS["int4 group"]
    weight, gram = draw(6, 48), random_gram(48)
    weight[:, 16:32] = 0
    solution, (scale, point), prepared = solved(weight, gram, args)
    codes = solution.codes.clone()
    codes[:, 16:32] = 0
    solution = measured(codes, weight, (scale, point), prepared, args)

    found, after = refitted(weight, solution, (scale, point), prepared, args)

    torch.testing.assert_close(found[:, 1], scale[:, 1])
    assert (after.loss < solution.loss).all()


@pytest.mark.parametrize(
    ("settings_", "expected"),
    [
        ({"strategy": "channel"}, True),
        ({"group_size": 32}, True),
        ({"strategy": "tensor"}, False),
        ({"strategy": "block", "block_structure": (8, 8)}, False),
        ({"group_size": 32, "scale_dtype": torch.uint8}, False),
    ],
)
def test_scales_that_are_shared_or_of_few_values_are_not_fitted(settings_, expected):
    assert has_own_scales(QuantizationArgs(num_bits=4, **settings_)) is expected
