"""The Triton kernel beside the loop in torch; `test_kernel.py` runs this, without a GPU in Triton's interpreter.

TRITON_INTERPRET=1 pytest plugins/gptq/tests/kernel_cases.py
"""

import pytest
import torch
from attrs import evolve

from coldpress import QuantizationArgs
from coldpress.plugin import number_format
from coldpress_gptq.algorithm import solver
from coldpress_gptq.algorithm.kernel import FusedSteps, supports
from coldpress_gptq.algorithm.solver import Grid, prepare, scale_rows, searched_qparams, solve
from coldpress_gptq.algorithm.steps import Steps

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRIDS = {
    "int4 group": QuantizationArgs(num_bits=4, group_size=16),
    "int4 group asymmetric": QuantizationArgs(num_bits=4, group_size=16, symmetric=False),
    "int3 channel": QuantizationArgs(num_bits=3, strategy="channel"),
    "int2 block": QuantizationArgs(num_bits=2, strategy="block", block_structure=(8, 24)),
    "int8 tensor asymmetric": QuantizationArgs(num_bits=8, strategy="tensor", symmetric=False),
    "fp8 channel": QuantizationArgs(num_bits=8, type="float", strategy="channel"),
    "fp6 group": QuantizationArgs(num_bits=6, type="float", group_size=16),
    "fp4 group": QuantizationArgs(num_bits=4, type="float", group_size=16),
}
over_grids = pytest.mark.parametrize("args", GRIDS.values(), ids=GRIDS)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def loops(grid, scales, points, groups):
    return (
        Steps(scales, points, grid, groups),
        FusedSteps(scales, points, grid, groups),
    )


@over_grids
def test_without_errors_to_carry_codes_are_the_same_bits(args):
    """Ties and ends included: targets are multiples of half a step, far beyond the ends."""
    grid = number_format(args)
    finest = 2.0**-10 if args.num_bits == 8 and args.type == "float" else 2.0**-4 if args.type == "float" else 0.5
    targets = (torch.arange(-1024, 1024) * finest).reshape(1, -1).to(DEVICE)
    targets = torch.cat([targets, targets * 2.0**5, draw(1, 2048) * grid.maximum, torch.zeros(1, 2048, device=DEVICE)])
    scales, groups = torch.ones(1, 2048, device=DEVICE), torch.zeros(1, 4, dtype=torch.int64, device=DEVICE)
    found = []
    for loop in loops(grid, scales, None, groups):
        tensors = targets.clone(), targets.clone(), torch.empty_like(targets)
        loop.round(slice(0, 4), *tensors, torch.zeros(1, 4, 4, device=DEVICE), None)
        found.append(tensors)

    for ours, expected in zip(*reversed(found), strict=True):
        assert torch.equal(ours, expected)
    assert torch.equal(found[0][2], grid.round(targets))


@over_grids
@pytest.mark.parametrize(("problems", "each"), [(1, 1), (1, 100), (3, 70)])
@pytest.mark.parametrize("columns", [1, 5, 32])
@pytest.mark.parametrize("keeping", [False, True])
def test_a_block_is_rounded_as_in_torch(args, problems, each, columns, keeping):
    rows = problems * each
    targets, owed = draw(columns, rows), draw(problems, columns, columns, seed=1).tril(-1) / 4
    errors = draw(columns, rows, seed=2)
    scales = draw(3, rows, seed=3).abs() / number_format(args).maximum + 0.1
    points = None if args.symmetric else draw(3, rows, seed=4).round()
    keep = (draw(columns, rows, seed=5) > 0).float() if keeping else None
    groups = (torch.arange(40) + torch.arange(problems)[:, None]).to(DEVICE) % 3
    here = slice(7, 7 + columns)
    found = []
    for loop in loops(number_format(args), scales, points, groups):
        tensors = targets.clone(), errors.clone(), torch.empty_like(targets)
        loop.round(here, *tensors, owed, keep)
        found.append(tensors)

    (expected_t, expected_e, expected_c), (t, e, c) = found
    assert (c != expected_c).float().mean() < 0.005
    same = (c == expected_c).all(0)  # a tie that went the other way changes the columns that follow in its row
    torch.testing.assert_close(t[:, same], expected_t[:, same], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(e[:, same], expected_e[:, same], rtol=1e-4, atol=1e-5)


@over_grids
@pytest.mark.parametrize("keep_zeros", [False, True])
@pytest.mark.parametrize("problems", [1, 2])
def test_matrices_are_solved_as_in_torch(args, problems, keep_zeros, monkeypatch):
    seeds = range(0, 4 * problems, 4)
    weights = [draw(80, 144, seed=seed) * (draw(80, 144, seed=seed + 1) < 1) for seed in seeds]
    inputs = [draw(600, 144, seed=seed + 2) @ draw(144, 144, seed=seed + 3) for seed in seeds]
    prepared = [prepare(x.t() @ x, dampening_frac=0.01, by_activity=True) for x in inputs]
    rows = [
        [scale_rows(part, args, (80, 144)) for part in searched_qparams(weight, args, one.importance)]
        for weight, one in zip(weights, prepared, strict=True)
    ]
    grid = Grid(args, *(torch.cat(parts, 1) for parts in zip(*rows, strict=True)))
    found = []
    for loop in (FusedSteps, Steps):
        monkeypatch.setattr(solver, "inner_loop", loop)
        found.append(solve([[one] for one in weights], prepared, grid, block_size=40, keep_zeros=keep_zeros))

    ours, expected = found
    assert ours.codes.dtype == expected.codes.dtype
    assert (ours.codes.float() != expected.codes.float()).float().mean() < 0.005
    torch.testing.assert_close(ours.loss.sum(), expected.loss.sum(), rtol=1e-3, atol=0)


def test_formats_of_plugins_are_left_to_torch():
    known = number_format(GRIDS["fp4 group"])

    assert supports(known)
    assert not supports(evolve(known, name="float5"))
