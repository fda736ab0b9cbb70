"""What the observers promise."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coldpress import Observer, QuantizationArgs
from coldpress.numerics import calculate_qparams, fake_quantize_groups, group
from coldpress_observers import MSE, MemorylessMinMax, MemorylessMSE, MinMax, StaticMinMax

ALL = [MemorylessMinMax, StaticMinMax, MinMax, MemorylessMSE, MSE]
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
    observer = StaticMinMax(args=QuantizationArgs())
    x = normal(12, 8, seed=seed)
    batches = x.tensor_split(cuts)

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
    ],
)
def test_settings_out_of_range_are_refused(kind, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        kind(args=QuantizationArgs(), **wrong)
