"""What the observers promise."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coldpress import CalibrationError, QuantizationArgs, preset
from coldpress.numerics import calculate_global_scale, calculate_qparams, fake_quantize_groups, group
from coldpress.plugin import Observer
from coldpress_observers import (
    KL,
    MSE,
    FourOverSix,
    ImatrixMSE,
    MemorylessMinMax,
    MemorylessMSE,
    MinMax,
    NVFP4ExpandedImatrix,
    NVFP4ExpandedMSE,
    Percentile,
    RoundedUp,
    StaticMinMax,
    algorithm,
)

ALL = [
    KL,
    MSE,
    FourOverSix,
    ImatrixMSE,
    MemorylessMinMax,
    MemorylessMSE,
    MinMax,
    NVFP4ExpandedImatrix,
    NVFP4ExpandedMSE,
    Percentile,
    RoundedUp,
    StaticMinMax,
]
UNORDERED = [KL, Percentile, RoundedUp, StaticMinMax]
NVFP4 = preset("NVFP4A16").weights
MXFP4 = preset("MXFP4A16").weights
SCHEMES = [
    QuantizationArgs(num_bits=4, group_size=8),
    QuantizationArgs(num_bits=4, group_size=8, symmetric=False),
    QuantizationArgs(num_bits=3, strategy="channel"),
    QuantizationArgs(num_bits=4, strategy="block", block_structure=(3, 5)),
    QuantizationArgs(num_bits=8, type="float"),
    QuantizationArgs(num_bits=4, type="float", group_size=8),
]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def seen(observer: Observer, batches: Any) -> Any:
    statistic = None
    for x in batches:
        statistic = observer.update(statistic, group(x, observer.args))
    return statistic


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(*pair) for pair in zip(a, b, strict=True))


@pytest.mark.parametrize("args", SCHEMES, ids=str)
@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_range_has_the_shape_of_the_scales_and_the_dtype_of_what_was_seen(kind, args, dtype):
    observer = kind(args=args)
    x = normal(6, 16, dtype=dtype)

    minimum, maximum = observer.range(seen(observer, [x, 2 * x]))

    assert minimum.shape == maximum.shape == group(x, args).shape[:-1]
    assert minimum.dtype == maximum.dtype == dtype
    assert (minimum <= maximum).all()


@pytest.mark.parametrize(
    ("kind", "plain"), [(StaticMinMax, MemorylessMinMax), (MinMax, MemorylessMinMax), (MSE, MemorylessMSE)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_observation_needs_no_memory(kind, plain, dtype):
    x = normal(6, 16, dtype=dtype)

    for args in SCHEMES:
        ranges = [observer.range(seen(observer, [x])) for observer in (kind(args=args), plain(args=args))]

        assert equal(*ranges)


@given(cuts=st.lists(st.integers(1, 11), unique=True).map(sorted), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_static_ranges_do_not_depend_on_batches_or_their_order(cuts, seed):
    x = normal(12, 8, seed=seed)
    batches = x.tensor_split(cuts)

    for kind in UNORDERED:
        observer = kind(args=QuantizationArgs())
        whole = observer.range(seen(observer, [x]))

        assert equal(observer.range(seen(observer, batches)), whole)
        assert equal(observer.range(seen(observer, batches[::-1])), whole)


@pytest.mark.parametrize("kind", ALL)
def test_whose_order_matters_says_so(kind):
    observer = kind(args=QuantizationArgs())
    a, b = normal(4, 8), 3 * normal(4, 8, seed=1)

    same = equal(observer.range(seen(observer, [a, b])), observer.range(seen(observer, [b, a])))

    assert same is not observer.order_matters


@pytest.mark.parametrize("kind", ALL)
def test_merging_does_not_depend_on_the_order(kind):
    observer = kind(args=QuantizationArgs(num_bits=4, group_size=4))
    parts = [seen(observer, [normal(4, 8, seed=i), normal(4, 8, seed=i + 9)][: 1 + i % 2]) for i in range(3)]
    ranges = [
        observer.range(observer.merge(observer.merge(parts[i], parts[j]), parts[k]))
        for i, j, k in itertools.permutations(range(3))
    ]

    for found in ranges[1:]:
        torch.testing.assert_close(found, ranges[0])
    assert equal(observer.range(observer.merge(*parts[:2])), observer.range(observer.merge(*parts[1::-1])))


def test_merging_two_halves_is_seeing_all():
    observer = StaticMinMax(args=QuantizationArgs())
    x = normal(10, 8)

    merged = observer.merge(*(seen(observer, [half]) for half in x.chunk(2)))

    assert equal(observer.range(merged), observer.range(seen(observer, [x])))


def test_merging_averages_weighs_by_what_they_have_seen():
    observer = MinMax(args=QuantizationArgs())
    one, three = seen(observer, [torch.ones(2, 4)]), seen(observer, [5 * torch.ones(2, 4)] * 3)

    assert observer.range(observer.merge(one, three))[1].item() == pytest.approx((1 + 3 * 5) / 4)


@pytest.mark.parametrize("kind", ALL)
def test_updating_leaves_the_old_statistic_alone(kind):
    observer = kind(args=QuantizationArgs())
    statistic = seen(observer, [normal(4, 8)])
    before = [end.clone() for end in observer.range(statistic)]

    observer.update(statistic, group(9 * normal(4, 8), observer.args))
    observer.merge(statistic, seen(observer, [9 * normal(4, 8)]))

    assert equal(observer.range(statistic), before)


def test_the_moving_average_is_the_recurrence_in_its_definition():
    observer = MinMax(args=QuantizationArgs(), averaging_constant=0.25)
    batches = [normal(3, 4, seed=i) for i in range(6)]
    low = high = None
    for x in batches:
        low = float(x.min()) if low is None else 0.75 * low + 0.25 * float(x.min())
        high = float(x.max()) if high is None else 0.75 * high + 0.25 * float(x.max())

    minimum, maximum = observer.range(seen(observer, batches))

    assert (minimum.item(), maximum.item()) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize("kind", [MinMax, MSE])
def test_a_constant_of_one_forgets(kind):
    observer = kind(args=QuantizationArgs(), averaging_constant=1.0)

    assert equal(
        observer.range(seen(observer, [normal(4, 8), normal(4, 8, seed=1)])),
        observer.range(seen(observer, [normal(4, 8, seed=1)])),
    )


def test_the_average_of_bfloat16_moves():
    observer = MinMax(args=QuantizationArgs())
    batches = [torch.full((1, 4), 1.0, dtype=torch.bfloat16)] + [torch.full((1, 4), 1.2, dtype=torch.bfloat16)] * 200

    assert observer.range(seen(observer, batches))[1].item() == pytest.approx(1.2, abs=0.04)


def error_of(x: Tensor, found: tuple[Tensor, Tensor], args: QuantizationArgs, norm: float) -> Tensor:
    return (fake_quantize_groups(x, *calculate_qparams(*found, args), args) - x).double().abs().pow(norm).sum(-1)


@pytest.mark.parametrize("args", SCHEMES, ids=str)
def test_no_factor_rounds_better_than_the_one_that_is_found(args):
    observer = MemorylessMSE(args=args, patience=100, grid=20, maxshrink=0.5)
    x = group(normal(6, 16).pow(3), args)
    found = error_of(x, observer.range(observer.update(None, x)), args, observer.norm)

    tried = [
        error_of(x, (x.amin(-1) * (1 - i / 20), x.amax(-1) * (1 - i / 20)), args, observer.norm) for i in range(10)
    ]

    torch.testing.assert_close(found, torch.stack(tried).amin(0), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", [MemorylessMSE, MSE])
def test_rounding_is_never_worse_than_with_the_whole_range(kind):
    for args in SCHEMES:
        x = group(normal(6, 16), args)
        observer = kind(args=args)

        found = error_of(x, observer.range(observer.update(None, x)), args, observer.norm)

        assert (found <= error_of(x, (x.amin(-1), x.amax(-1)), args, observer.norm) * (1 + 1e-5)).all()


def test_a_group_of_zeros_stays_a_group_of_zeros():
    args = QuantizationArgs(num_bits=4, symmetric=False, group_size=8)
    x = normal(2, 16)
    x[0] = 0

    for kind in ALL:
        minimum, maximum = (observer := kind(args=args)).range(seen(observer, [x]))

        assert not minimum[0].any()
        assert not maximum[0].any()


def test_the_size_of_a_block_is_only_speed(monkeypatch):
    whole = [MemorylessMSE(args=args) for args in SCHEMES]
    ranges = [observer.range(seen(observer, [normal(6, 16)])) for observer in whole]

    monkeypatch.setattr("coldpress_observers.algorithm._BLOCK", 7)

    for observer, expected in zip(whole, ranges, strict=True):
        assert equal(observer.range(seen(observer, [normal(6, 16)])), expected)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (MinMax, {"averaging_constant": 0.0}),
        (MinMax, {"averaging_constant": 1.5}),
        (MSE, {"averaging_constant": 2}),
        (MSE, {"maxshrink": 0}),
        (MemorylessMSE, {"maxshrink": 1.1}),
        (MemorylessMSE, {"patience": 0}),
        (MemorylessMSE, {"grid": 0}),
        (MemorylessMSE, {"norm": 0}),
        (ImatrixMSE, {"expand": 0.5}),
        (NVFP4ExpandedMSE, {"maxshrink": 0}),
        (FourOverSix, {"norm": -1}),
        (Percentile, {"percentile": 0}),
        (Percentile, {"percentile": 101}),
        (KL, {"maxshrink": 1}),
        (KL, {"steps": 0}),
    ],
)
def test_settings_out_of_range_are_refused(kind, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        kind(args=QuantizationArgs(), **wrong)


# --- columns that count differently


def weighed_error(x, found, args, cost, norm):
    return (cost * (fake_quantize_groups(x, *calculate_qparams(*found, args), args) - x).abs().pow(norm)).sum(-1)


@pytest.mark.parametrize("args", SCHEMES[:3], ids=str)
def test_the_weighed_search_finds_the_least_weighed_error(args):
    observer = ImatrixMSE(args=args, patience=100)
    weight, importance = normal(6, 16), normal(1, 16, seed=1).exp().square()
    x, cost = group(weight, args), group(importance.expand_as(weight), args)

    found = weighed_error(x, observer.weight_range(x, importance=cost), args, cost, observer.norm)
    tried = [
        weighed_error(x, (x.amin(-1) * (1 - i / 20), x.amax(-1) * (1 - i / 20)), args, cost, observer.norm)
        for i in range(19)
    ]

    torch.testing.assert_close(found, torch.stack(tried).amin(0), rtol=1e-4, atol=1e-9)


def test_columns_that_count_the_same_are_plain_rounding_errors():
    args = SCHEMES[0]
    x = group(normal(6, 16), args)
    plain = MemorylessMSE(args=args, maxshrink=0.95, grid=20, norm=3)

    same = ImatrixMSE(args=args).weight_range(x, importance=torch.full_like(x, 0.7))

    assert equal(same, plain.weight_range(x))
    assert equal(ImatrixMSE(args=args).weight_range(x), same)


def test_a_column_that_no_input_reaches_may_be_cut_off():
    args = QuantizationArgs(num_bits=4, group_size=8)
    x = normal(1, 8)
    x[0, 3] = 50.0  # rounds everything else to nothing, and counts for nothing
    cost = torch.ones_like(x)
    cost[0, 3] = 0.0

    _, high = ImatrixMSE(args=args, patience=100).weight_range(group(x, args), importance=group(cost, args))

    assert high.item() < 10


# --- two levels of scales, and powers of two


@pytest.mark.parametrize("kind", [MemorylessMSE, MSE, ImatrixMSE, NVFP4ExpandedMSE, FourOverSix])
def test_in_two_levels_rounding_is_never_worse_than_with_the_whole_range(kind):
    x = group(normal(8, 64).pow(3), NVFP4)
    scale = calculate_global_scale(x.abs().amax(), NVFP4)

    def error(found):
        qparams = calculate_qparams(*found, NVFP4, global_scale=scale)
        return (fake_quantize_groups(x, *qparams, NVFP4, global_scale=scale) - x).abs().pow(norm).sum(-1)

    norm = kind(args=NVFP4).norm
    found = kind(args=NVFP4).weight_range(x, global_scale=scale)

    assert (error(found) <= error((x.amin(-1), x.amax(-1))) * (1 + 1e-5)).all()
    assert error(found).sum() < error((x.amin(-1), x.amax(-1))).sum()


def test_what_lies_on_the_grid_below_four_is_put_there():
    args = QuantizationArgs(num_bits=4, type="float", group_size=8)
    x = group(torch.tensor([[4.0, 3.0, 2.0, 1.5, 1.0, 0.5, 0.0, -3.0]]), args)

    found = FourOverSix(args=args).weight_range(x)

    assert found[1].item() == 6.0
    assert error_of(x, found, args, 2.0).item() == 0.0


@given(seed=st.integers(0, 10**6), bits=st.sampled_from([4, 6, 8]))
@settings(max_examples=30, deadline=None)
def test_a_power_of_two_that_is_rounded_up_cuts_nothing_off_and_is_the_smallest(seed, bits):
    args = preset(f"MXFP{bits}A16").weights
    x = group(normal(4, 64, seed=seed).exp2() * 10, args)
    top = {4: 6.0, 6: 7.5, 8: 448.0}[bits]
    observer = RoundedUp(args=args)

    scale, _ = calculate_qparams(*observer.range(observer.update(None, x)), args)

    largest = x.abs().amax(-1)
    assert (largest <= top * scale).all()
    assert (largest > top * scale / 2).all()


def test_the_fields_rule_cuts_off_where_rounding_up_does_not():
    x = group(torch.full((1, 32), 7.0), MXFP4)

    scales = [
        calculate_qparams(*kind(args=MXFP4).weight_range(x), MXFP4)[0].item() for kind in (MemorylessMinMax, RoundedUp)
    ]

    assert scales == [2.0, 2.0]  # 7 is 1.75 * 4: the rule rounds up too
    x = group(torch.full((1, 32), 6.9), MXFP4)
    scales = [
        calculate_qparams(*kind(args=MXFP4).weight_range(x), MXFP4)[0].item() for kind in (MemorylessMinMax, RoundedUp)
    ]
    assert scales == [1.0, 2.0]


# --- counts


def test_a_percentile_is_that_of_the_sorted_numbers_to_the_width_of_a_bin():
    args = QuantizationArgs(symmetric=False)
    x = normal(400, 50).exp() - 1.5
    for percentile in (80.0, 90.0, 99.0):
        observer = Percentile(args=args, percentile=percentile)

        low, high = observer.range(seen(observer, x.chunk(7)))

        tail = (100 - percentile) / 200
        expected = torch.quantile(x.flatten(), torch.tensor([tail, 1 - tail]))
        assert low.item() == pytest.approx(expected[0].item(), rel=0.025)
        assert high.item() == pytest.approx(expected[1].item(), rel=0.025)


def test_a_hundred_percent_is_everything():
    x = normal(20, 8)
    for args in SCHEMES:
        observer, whole = Percentile(args=args, percentile=100.0), StaticMinMax(args=args)

        assert equal(observer.range(seen(observer, [x])), whole.range(seen(whole, [x])))


def test_divergence_cuts_off_an_outlier_and_keeps_what_is_even():
    args = QuantizationArgs(num_bits=8)
    observer = KL(args=args)
    heavy = normal(1000, 20)
    heavy[0, 0] = 400.0
    even = torch.linspace(-1, 1, 20_000).reshape(1000, 20)

    cut, kept = observer.range(seen(observer, [heavy])), observer.range(seen(observer, [even]))

    assert 2.5 < cut[1].item() < 40
    assert kept[1].item() > 0.9


def test_divergence_is_that_of_a_slow_sum():
    args = QuantizationArgs(num_bits=3)
    centers = torch.tensor([-4.0, -2.0, -1.0, -0.1, 0.1, 0.5, 1.0, 3.0, 8.0])
    counts = torch.tensor([1, 5, 9, 20, 22, 10, 7, 3, 1]).double()
    ends = torch.tensor([-8.0, -4.0, -2.0]), torch.tensor([8.0, 4.0, 2.0])

    found = algorithm._divergences(counts, centers, ends, args)

    for low, high, value in zip(*ends, found, strict=True):
        scale, _ = calculate_qparams(low, high, args)
        inside = [i for i, c in enumerate(centers) if low - scale / 2 <= c <= high + scale / 2]
        p = [counts[i].item() for i in inside]
        p[0] += counts[: inside[0]].sum().item()
        p[-1] += counts[inside[-1] + 1 :].sum().item()
        levels = [max(-4, min(3, round((centers[i] / scale).item()))) for i in inside]
        q = []
        for i, level in zip(inside, levels, strict=True):
            mates = [j for j, other in zip(inside, levels, strict=True) if other == level]
            mass, room = sum(counts[j] for j in mates), sum(centers[j].abs() for j in mates)
            q.append((mass * centers[i].abs() / room).item())
        expected = sum(a / 78 * math.log((a / 78) / (b / sum(q))) for a, b in zip(p, q, strict=True))
        assert value.item() == pytest.approx(expected, rel=1e-5)


def test_weighed_columns_and_a_wider_range_are_one_search_when_all_columns_count_the_same():
    w = group(normal(8, 64), NVFP4)  # [8, 4, 16]
    scale = calculate_global_scale(w.abs().amax(), NVFP4)

    found = NVFP4ExpandedImatrix(args=NVFP4).weight_range(w, global_scale=scale)

    torch.testing.assert_close(found, NVFP4ExpandedMSE(args=NVFP4).weight_range(w, global_scale=scale))


def test_a_strict_observer_refuses_a_weight_whose_inputs_are_not_known():
    observer = ImatrixMSE(args=SCHEMES[0], strict=True)
    w = group(normal(8, 64), SCHEMES[0])  # [8, 8, 8]

    with pytest.raises(CalibrationError, match="strict"):
        observer.weight_range(w)
    observer.weight_range(w, importance=torch.ones_like(w))


@pytest.mark.parametrize("kind", [MSE, MemorylessMSE])
def test_an_expanded_search_is_never_worse(kind):
    args, w = NVFP4, group(normal(8, 64), NVFP4)  # [8, 4, 16]
    scale = calculate_global_scale(w.abs().amax(), args)

    def error(**settings: float) -> float:
        found = kind(args=args, maxshrink=0.5, norm=2.0, **settings).weight_range(w, global_scale=scale)
        rounded = fake_quantize_groups(
            w, *calculate_qparams(*found, args, global_scale=scale), args, global_scale=scale
        )
        return float((rounded - w).square().sum())

    assert error(expand=1.6, triton_error_buffer=0.3) < error()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 12, 16, 128, 130, 256, 258, 512])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_range_of_a_group_is_the_same_whatever_its_size(size, dtype):
    x = torch.randn(7, 5, size, generator=torch.Generator().manual_seed(size)).to(dtype)
    if size > 2:
        x[0, 0, 1], x[1, 2, size - 1] = float("nan"), float("inf")
    if not size:
        with pytest.raises(IndexError):
            algorithm.extremes(x)
        return

    low, high = algorithm.extremes(x)

    assert torch.equal(low.nan_to_num(9.0, 8.0), x.amin(-1).nan_to_num(9.0, 8.0))
    assert torch.equal(high.nan_to_num(9.0, 8.0), x.amax(-1).nan_to_num(9.0, 8.0))
    low.zero_()  # in memory of its own
    assert bool(x[2].any())
