"""What an observer promises: a range for every strategy, and statistics that can be merged."""

from collections.abc import Iterator

import torch
from attrs import evolve
from torch import Tensor

from coldpress.calibration.observer import Observer, observer_for
from coldpress.errors import SchemeError
from coldpress.numerics import calculate_qparams, fake_quantize, group
from coldpress.schemes import QuantizationArgs
from coldpress.testing.check import Check
from coldpress.testing.settings_checks import has_a_module, import_is_quiet, settings_class
from coldpress.testing.subject import Subject
from coldpress.testing.trace import same_bits

# Every strategy that can share a scale over a matrix, and grids of both kinds.
_ARGS = (
    QuantizationArgs(strategy="tensor"),
    QuantizationArgs(strategy="tensor", symmetric=False),
    QuantizationArgs(strategy="channel"),
    QuantizationArgs(strategy="channel", type="float"),
    QuantizationArgs(strategy="token", dynamic=True),
    QuantizationArgs(num_bits=4, group_size=16),
    QuantizationArgs(num_bits=4, group_size=16, symmetric=False),
    QuantizationArgs(strategy="block", block_structure=(16, 16)),
)
_STATIC = QuantizationArgs(strategy="tensor")  # what static inputs are observed with, batch after batch
_SHAPE = (24, 48)


def range_shapes(subject: Subject) -> None:
    """One range for each scale, in the dtype of what was seen, finite and the right way round."""
    for observer, args in _observers(subject):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            grouped = group(_values().to(dtype), args)
            for end in _range(observer, grouped):
                place = f"{args.strategy} in {dtype}"
                assert end.shape == grouped.shape[:-1], f"{place}: {tuple(end.shape)} for {tuple(grouped.shape)}"
                assert end.dtype == dtype, f"{place}: the range is in {end.dtype}"
                assert torch.isfinite(end).all(), f"{place}: the range is not finite"
            minimum, maximum = _range(observer, grouped)
            assert (minimum <= maximum).all(), f"{args.strategy}: the smallest is larger than the largest"


def stays_within(subject: Subject) -> None:
    """A range never reaches beyond what was seen and zero."""
    for observer, args in _observers(subject):
        grouped = group(_values(), args)
        minimum, maximum = _range(observer, grouped)
        assert (minimum >= grouped.amin(-1).clamp(max=0) - 1e-6).all(), f"{args.strategy}: below the smallest"
        assert (maximum <= grouped.amax(-1).clamp(min=0) + 1e-6).all(), f"{args.strategy}: above the largest"


def changes_nothing(subject: Subject) -> None:
    """Neither the statistic so far nor what is seen is written to."""
    for observer, args in _observers(subject):
        first, second = (group(values, args).clone() for values in _two())
        kept = second.clone()
        statistic = observer.update(None, first)
        before = observer.range(statistic)
        before = before[0].clone(), before[1].clone()
        observer.update(statistic, second)
        observer.merge(statistic, observer.update(None, second))
        after = observer.range(statistic)
        assert same_bits(kept, second), f"{args.strategy}: the values that it looked at are changed"
        same = same_bits(before[0], after[0]) and same_bits(before[1], after[1])
        assert same, f"{args.strategy}: update or merge changes the statistic that it was given"


def merge_does_not_care_who_is_first(subject: Subject) -> None:
    """Merging a and b is merging b and a."""
    for observer, args in _observers(subject):
        a, b = (observer.update(None, group(values, args)) for values in _two())
        _check_close(observer.range(observer.merge(a, b)), observer.range(observer.merge(b, a)), args)


def merge_is_seeing_all(subject: Subject) -> None:
    """Two statistics merged are the statistic of one that saw both."""
    for observer, args in _observers(subject):
        a, b = (group(values, args) for values in _two())
        apart = observer.merge(observer.update(None, a), observer.update(None, b))
        _check_close(observer.range(apart), observer.range(observer.update(observer.update(None, a), b)), args)


def batches_merge_bit_for_bit(subject: Subject) -> None:
    """Several ranks: merging what a batch adds is updating with it, in every bit."""
    for observer, args in _observers(subject):
        a, b = (group(values, args) for values in _two())
        updated = observer.range(observer.update(observer.update(None, a), b))
        merged = observer.range(observer.merge(observer.update(None, a), observer.update(None, b)))
        same = all(same_bits(one, other) for one, other in zip(merged, updated, strict=True))
        assert same, f"{args.strategy}: merges_batches is True, and merge gives other bits than update"


def batching_does_not_matter(subject: Subject) -> None:
    """Static inputs: one batch of all tokens gives the range of many small ones."""
    observer = _observer(subject, _STATIC)
    values, statistic = _values(), None
    for part in torch.split(values, 5):
        statistic = observer.update(statistic, group(part, _STATIC))
    _check_close(observer.range(statistic), _range(observer, group(values, _STATIC)), _STATIC)


def constants(subject: Subject) -> None:
    """A tensor that holds one value only keeps that value, to a hundredth, at eight bits."""
    for value in (0.75, -3.0):
        for observer, args in _observers(subject):
            values = torch.full(_SHAPE, value)
            error = (_rounded(observer, values, args) - values).abs().max() / abs(value)
            most = 0.01 if args.num_bits == 8 and args.type == "int" else 0.1
            assert error <= most, (
                f"{args.strategy}, {args.num_bits} bits: {value} becomes something else by {error:.1%}"
            )


def zeros(subject: Subject) -> None:
    """A tensor of zeros has a finite scale above zero, and stays zero."""
    for observer, args in _observers(subject):
        values = torch.zeros(_SHAPE)
        scale, _ = calculate_qparams(*_range(observer, group(values, args)), args)
        assert torch.isfinite(scale).all(), f"{args.strategy}: the scale is not finite"
        assert (scale > 0).all(), f"{args.strategy}: the scale is not above zero"
        assert not _rounded(observer, values, args).any(), f"{args.strategy}: zero becomes something else"


def deterministic(subject: Subject) -> None:
    """The same bits twice, whatever the global random numbers are."""
    for observer, args in _observers(subject):
        ranges = []
        for seed in (1, 2):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                ranges.append(_range(observer, group(_values(), args)))
        same = all(same_bits(a, b) for a, b in zip(*ranges, strict=True))
        assert same, f"{args.strategy}: another range in a second run"


def typo_is_reported(subject: Subject) -> None:
    """An unknown setting in `observer_kwargs` is refused."""
    args = evolve(_STATIC, observer=subject.name, observer_kwargs={"settingz": 1})
    message = ""
    try:
        observer_for(args, subject.name)
    except SchemeError as error:
        message = str(error)
    assert "settingz" in message, f"the unknown setting 'settingz' is not reported: {message or 'no error'}"


def _values() -> Tensor:
    """Values of both signs, some of them large, [24, 48]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_SHAPE, generator=generator) * torch.rand(_SHAPE, generator=generator) * 4 + 0.3


def _two() -> tuple[Tensor, Tensor]:
    return _values(), 0.5 - 1.5 * _values().flip(0)


def _observer(subject: Subject, args: QuantizationArgs) -> Observer:
    observer: Observer = subject.make(args=args)
    return observer


def _observers(subject: Subject) -> Iterator[tuple[Observer, QuantizationArgs]]:
    for args in _ARGS:
        yield _observer(subject, args), args


def _range(observer: Observer, grouped: Tensor) -> tuple[Tensor, Tensor]:
    return observer.range(observer.update(None, grouped))


def _rounded(observer: Observer, values: Tensor, args: QuantizationArgs) -> Tensor:
    scale, zero_point = calculate_qparams(*_range(observer, group(values, args)), args)
    return fake_quantize(values, scale, zero_point, args)


def _check_close(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], args: QuantizationArgs) -> None:
    for end, other in zip(a, b, strict=True):
        assert torch.allclose(end, other, rtol=1e-4, atol=1e-6), (
            f"{args.strategy}: {end.flatten()[:4]} and {other.flatten()[:4]}"
        )


def _keeps_no_order(subject: Subject) -> bool:
    return not subject.cls.order_matters


def _merges_batches(subject: Subject) -> bool:
    return bool(subject.cls.merges_batches)


def _is_installed(subject: Subject) -> bool:
    return subject.installed


_SOUND = ("range_shapes", "deterministic", "changes_nothing")

CHECKS = (
    Check(settings_class),
    Check(import_is_quiet, applies=has_a_module),
    Check(typo_is_reported, applies=_is_installed),
    Check(range_shapes),
    Check(stays_within, after=("range_shapes",)),
    Check(constants, after=("range_shapes",)),
    Check(zeros, after=("range_shapes",)),
    Check(deterministic, after=("range_shapes",)),
    Check(changes_nothing, after=("range_shapes", "deterministic")),
    Check(merge_does_not_care_who_is_first, after=_SOUND),
    Check(merge_is_seeing_all, after=(*_SOUND, "merge_does_not_care_who_is_first"), applies=_keeps_no_order),
    Check(batches_merge_bit_for_bit, after=_SOUND, applies=_merges_batches),
    Check(batching_does_not_matter, after=_SOUND, applies=_keeps_no_order),
)
