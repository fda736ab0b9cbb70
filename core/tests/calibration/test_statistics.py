"""Statistics: parts give the whole, and what is carried is what would have been seen."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coldpress.calibration.observer import observer_for
from coldpress.calibration.statistics import Average, Gram, GramValue, Histogram, Observed, Range
from coldpress.errors import BrokenPluginError, UnknownPluginError
from coldpress.registry import available
from coldpress.schemes import QuantizationArgs
from coldpress.statistic import RESCALE, ROTATE, statistic_for

NAMES = ("absmax", "gram", "histogram", "mean", "mean_abs", "minmax", "second_moment")
WIDTH = 6
quick = settings(max_examples=25, deadline=None)


def tokens(seed: int, count: int = 20, *, dtype=torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-1, 1, WIDTH)
    return (torch.randn(count, WIDTH, generator=generator) * spread + 0.3).to(dtype)  # [T, I]


def value_of(statistic, *parts: Tensor):
    value = None
    for x in parts:
        value = statistic.update(value, x)
    return statistic.finish(value)


def numbers(value) -> list[Tensor]:
    match value:
        case Average():
            return [value.mean, torch.tensor(value.count)]
        case GramValue():
            assert value.pending == ()
            return [value.total, torch.tensor(value.count)]
        case Range():
            return [value.minimum, value.maximum]
    return [value]


def assert_same(a, b, **tolerance) -> None:
    for one, other in zip(numbers(a), numbers(b), strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def test_core_offers_its_own_by_name():
    assert [plugin.name for plugin in available("statistics")] == sorted((*NAMES, "gamma", "token_weight"))


def test_a_name_that_nobody_offers_is_answered_with_a_near_one():
    with pytest.raises(UnknownPluginError, match="did you mean 'gram'"):
        statistic_for("grams")


def test_what_is_no_statistic_is_refused(monkeypatch):
    monkeypatch.setattr("coldpress.statistic.find", lambda kind, name: int)

    with pytest.raises(BrokenPluginError, match="'gram' is <class 'int'>, not a subclass"):
        statistic_for("gram")


def test_equal_settings_are_one_statistic():
    assert statistic_for("gram") == Gram()
    assert Histogram(bins_per_octave=4) != Histogram()


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 1000), cut=st.integers(1, 19))
@quick
def test_parts_give_the_whole_updated_or_merged(name, seed, cut):
    statistic, x = statistic_for(name), tokens(seed)
    whole = value_of(statistic, x)
    a, b = value_of(statistic, x[:cut]), value_of(statistic, x[cut:])

    assert_same(value_of(statistic, x[:cut], x[cut:]), whole, rtol=1e-5, atol=1e-4)
    assert_same(statistic.merge(a, b), whole, rtol=1e-5, atol=1e-4)
    assert_same(statistic.merge(b, a), whole, rtol=1e-5, atol=1e-4)
    assert_same(statistic.finish(statistic.update(a, x[cut:])), whole, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_value_is_never_changed_by_what_comes_after(name):
    statistic, x = statistic_for(name), tokens(0)
    value = statistic.update(None, x)
    before = [part.clone() for part in numbers(statistic.finish(value))]

    statistic.update(value, 5 * x)
    statistic.merge(value, statistic.update(None, x))
    for how, by in (("rescale", torch.full((WIDTH,), 2.0)), ("rotate", torch.ones(WIDTH, WIDTH))):
        if how in statistic.supports:
            getattr(statistic, how)(value, by)

    for old, new in zip(before, numbers(statistic.finish(value)), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("name", [name for name in NAMES if RESCALE in statistic_for(name).supports])
@given(seed=st.integers(0, 1000))
@quick
def test_rescaling_is_seeing_inputs_divided_by_the_scale(name, seed):
    statistic, x = statistic_for(name), tokens(seed)
    sign = torch.tensor([1.0, -1.0] * (WIDTH // 2))
    scale = sign * (tokens(seed + 1, 1)[0].abs() + 0.1)  # [I]

    carried = statistic.rescale(value_of(statistic, x), scale)

    assert_same(carried, value_of(statistic, x / scale), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if ROTATE in statistic_for(name).supports])
@given(seed=st.integers(0, 1000))
@quick
def test_rotating_is_seeing_inputs_times_the_matrix(name, seed):
    statistic, x = statistic_for(name), tokens(seed)
    rotation, _ = torch.linalg.qr(tokens(seed + 1, WIDTH))  # [I, I]

    carried = statistic.rotate(value_of(statistic, x), rotation)

    assert_same(carried, value_of(statistic, x @ rotation), rtol=1e-4, atol=1e-3)


def test_what_cannot_follow_the_signal_says_so():
    assert {name for name in NAMES if ROTATE in statistic_for(name).supports} == {"gram", "mean"}
    assert {name for name in NAMES if RESCALE not in statistic_for(name).supports} == {"histogram"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_are_those_of_the_definition(dtype):
    x = tokens(3, 50, dtype=dtype)
    wide = x.double()
    found = {name: numbers(value_of(statistic_for(name), x)) for name in NAMES}
    expected = {
        "absmax": wide.abs().amax(0),
        "mean": wide.mean(0),
        "mean_abs": wide.abs().mean(0),
        "minmax": wide.amin(0),
        "second_moment": wide.square().mean(0),
    }

    for name, value in expected.items():
        torch.testing.assert_close(found[name][0].double(), value, rtol=1e-5, atol=1e-5)
        assert found[name][0].dtype == torch.float32


@pytest.mark.parametrize("chunk", [1, 7, 20, 64])
def test_gram_has_the_same_bits_however_tokens_are_batched(chunk):
    statistic, x = Gram(chunk=chunk), tokens(5, 60, dtype=torch.bfloat16)

    one = value_of(statistic, x)
    many = value_of(statistic, *x.split([1, 2, 30, 7, 20]))

    assert torch.equal(one.total, many.total)
    assert one.count == many.count == 60


def test_a_histogram_counts_every_number_in_its_bin():
    statistic = Histogram(bins_per_octave=2, smallest=-3, largest=3)
    x = torch.tensor([[0.0, -0.01, 1.0, 1.4], [-1.5, 100.0, -100.0, 0.126]])
    counts, edges = statistic.update(None, x), statistic.edges()

    assert counts.shape == (2, 12)
    assert counts.sum() == x.numel()
    assert counts[1, 0] == 3  # zero, what is too small, and 0.126
    assert counts[1, 6] == 2  # from 1 to 1.41
    assert counts[0, 7] == 1
    assert counts[:, -1].tolist() == [1, 1]
    torch.testing.assert_close(edges[[0, 6, 12]], torch.tensor([0.125, 1.0, 8.0], dtype=torch.float64))


def test_an_observer_is_a_statistic_of_its_groups():
    args = QuantizationArgs(num_bits=8, strategy="tensor")
    statistic, x = Observed(observer=observer_for(args, "static_minmax")), tokens(1)

    low, high = statistic.observer.range(value_of(statistic, x[:5], x[5:]))

    assert (low.item(), high.item()) == (x.min().item(), x.max().item())
    assert statistic == Observed(observer=observer_for(args, "static_minmax"))
