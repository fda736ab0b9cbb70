"""What a statistic promises: parts give the whole, nothing is written to, and what is carried is what would be seen.

Of a statistic that compares, tokens are [T, 2, I]: inputs of a layer, and of the same layer in the original model.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from coldpress.statistic import RESCALE, ROTATE, ChunkedStatistic, GradientStatistic, Statistic, Tokens
from coldpress.testing.check import Check
from coldpress.testing.settings_checks import has_a_module, import_is_quiet, settings_class
from coldpress.testing.subject import Subject

_TOKENS, _WIDTH = 24, 16
_TOLERANCE = 1e-2  # relative to the largest number; a statistic may round


def equal_settings_are_one(subject: Subject) -> None:
    """Two statistics with the same settings are equal and have one hash, so that they are collected once."""
    one, other = subject.make(), subject.make()
    assert "__eq__" in vars(subject.cls), "its settings are not compared: @frozen(kw_only=True), without eq=False"
    assert one == other, "two with the same settings differ"
    assert hash(one) == hash(other), "two with the same settings have two hashes"


def dtypes(subject: Subject) -> None:
    """Tokens in float32, bfloat16 and float16, one or many, give finite numbers."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for count in (1, _TOKENS):
            value = _value(subject, _tokens(subject)[:count].to(dtype))
            assert all(torch.isfinite(x).all() for x in _numbers(value)), f"{count} tokens in {dtype}: not finite"


def deterministic(subject: Subject) -> None:
    """The same bits twice, whatever the global random numbers are."""
    values = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            values.append(_numbers(_value(subject, _tokens(subject))))
    assert all(torch.equal(a, b) for a, b in zip(*values, strict=True)), "another value in a second run"


def changes_nothing(subject: Subject) -> None:
    """Neither the tokens nor a value that is handed over is written to, whatever is called."""
    statistic = _statistic(subject)
    x, other = _tokens(subject), _tokens(subject, seed=1)
    before = [x.clone(), other.clone()]
    value, second = _seen(statistic, None, x), _seen(statistic, None, other)
    held = _numbers(value, copied=False)
    before += [tensor.clone() for tensor in held]
    statistic.merge(_seen(statistic, value, other), statistic.merge(value, second))
    finished = statistic.finish(value)
    for how, by in _moves(statistic):
        getattr(statistic, how)(finished, by)
    after = (x, other, *held)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "tokens or a value are changed"


def parts_give_the_whole(subject: Subject) -> None:
    """Tokens in two batches give the value of one batch."""
    for cut in (1, 7, _TOKENS - 1):
        x = _tokens(subject)
        _check_same(_value(subject, x[:cut], x[cut:]), _value(subject, x), f"{cut} tokens, then the rest")


def finish_goes_on(subject: Subject) -> None:
    """A value that was finished can be updated further, and finishing twice is finishing once."""
    statistic, x = _statistic(subject), _tokens(subject)
    early = statistic.finish(_seen(statistic, None, x[:7]))
    _check_same(statistic.finish(early), early, "finished twice")
    _check_same(statistic.finish(_seen(statistic, early, x[7:])), _value(subject, x), "finished, then more tokens")


def merge_is_seeing_all(subject: Subject) -> None:
    """Two values merged, whichever is first, are the value of one that saw both."""
    statistic, x = _statistic(subject), _tokens(subject)
    a, b = _seen(statistic, None, x[:7]), _seen(statistic, None, x[7:])
    for first, second in ((a, b), (b, a), (statistic.finish(a), statistic.finish(b))):
        _check_same(statistic.finish(statistic.merge(first, second)), _value(subject, x), "merged")


def batches_merge_bit_for_bit(subject: Subject) -> None:
    """Several ranks: merging what a batch adds is updating with it, in every bit."""
    statistic, value = _statistic(subject), None
    for x in (_tokens(subject, seed=seed) for seed in range(3)):
        value, added = _seen(statistic, value, x), (value, _seen(statistic, None, x))
        merged = added[1] if added[0] is None else statistic.merge(*added)
        _check_bits(merged, value, "merges_batches() says that merge gives the bits of update")


def chunks_add_bit_for_bit(subject: Subject) -> None:
    """Several ranks: chunks that are added up apart and added in order are what update makes of the tokens."""
    statistic = _statistic(subject)
    assert isinstance(statistic, ChunkedStatistic)
    size, value, whole = statistic.chunk_size(), None, None
    x = torch.cat([_tokens(subject, seed=seed) for seed in range(1 + 2 * size // _TOKENS)])
    for start in range(0, len(x), size):
        part = x[start : start + size]
        value = statistic.add(value, statistic.addend(part, start), len(part))
    for part in torch.split(x, 7):
        whole = statistic.update(whole, part)
    _check_bits(statistic.finish(value), statistic.finish(whole), "chunks that were added up apart")


def supports(subject: Subject) -> None:
    """What is carried along with a signal that moves is what would have been seen of it."""
    statistic, x = _statistic(subject), _tokens(subject)
    unknown = statistic.supports - {RESCALE, ROTATE}
    assert not unknown, f"supports has {', '.join(map(repr, unknown))}; there are {RESCALE!r} and {ROTATE!r}"
    for how, by in _moves(statistic):
        moved = x / by if how == RESCALE else x @ by
        _check_same(getattr(statistic, how)(_value(subject, x), by), _value(subject, moved), f"after {how}")


def _tokens(subject: Subject, *, seed: int = 0) -> Tensor:
    """Inputs of a layer, some channels larger than others, [T, I], or [T, 2, I] for a statistic that compares."""
    generator = torch.Generator().manual_seed(seed)
    shape = (_TOKENS, 2, _WIDTH) if subject.cls.needs_original_inputs else (_TOKENS, _WIDTH)
    return torch.randn(shape, generator=generator) * torch.logspace(-1, 0.5, _WIDTH) + 0.2


def _seen(statistic: Statistic, value: Any, x: Tensor) -> Any:
    if isinstance(statistic, GradientStatistic):
        return statistic.update_with_gradient(value, x, Tokens(0))
    return (
        statistic.update_with_original(value, x[:, 0], x[:, 1])
        if statistic.needs_original_inputs
        else statistic.update(value, x)
    )


def _moves(statistic: Statistic) -> Iterator[tuple[str, Tensor]]:
    """What the statistic says that it can follow, each with a scale, [I], or a rotation, [I, I]."""
    generator = torch.Generator().manual_seed(2)
    if RESCALE in statistic.supports:
        signs = torch.tensor([1.0, -1.0]).repeat(_WIDTH // 2)
        yield RESCALE, (torch.rand(_WIDTH, generator=generator) + 0.5) * signs
    if ROTATE in statistic.supports:
        yield ROTATE, torch.linalg.qr(torch.randn(_WIDTH, _WIDTH, generator=generator))[0]


def _statistic(subject: Subject) -> Statistic:
    statistic: Statistic = subject.make()
    return statistic


def _value(subject: Subject, *parts: Tensor) -> Any:
    statistic, value = _statistic(subject), None
    for x in parts:
        value = _seen(statistic, value, x)
    return statistic.finish(value)


def _numbers(value: Any, *, copied: bool = True) -> list[Tensor]:
    """Every number in a value, as tensors; in float64, or with `copied=False` the tensors themselves."""
    if isinstance(value, Tensor):
        return [value.double()] if copied else [value]
    if value is None or isinstance(value, str):
        return []
    if isinstance(value, int | float):
        return [torch.tensor(value, dtype=torch.float64)]
    if attrs.has(type(value)):
        parts = [getattr(value, field.name) for field in attrs.fields(type(value))]
    else:
        assert isinstance(value, tuple | list | Mapping), (
            f"a value holds a {type(value).__name__}: use tensors, numbers, attrs classes, tuples, lists or dicts"
        )
        parts = list(value.values()) if isinstance(value, Mapping) else list(value)
    return [number for part in parts for number in _numbers(part, copied=copied)]


def _check_same(found: Any, wanted: Any, when: str) -> None:
    ours, theirs = _numbers(found), _numbers(wanted)
    assert [x.shape for x in ours] == [x.shape for x in theirs], f"{when}: other shapes than what was seen at once"
    for one, other in zip(ours, theirs, strict=True):
        most = _TOLERANCE * float(other.abs().max()) if other.numel() else 0.0
        apart = float((one - other).abs().max()) if other.numel() else 0.0
        assert apart <= most, (
            f"{when}: off by {apart:.3g} from what is seen at once, where {most:.3g} would be rounding"
        )


def _check_bits(found: Any, wanted: Any, when: str) -> None:
    same = [torch.equal(one, other) for one, other in zip(_numbers(found), _numbers(wanted), strict=True)]
    assert all(same), f"{when}: other bits"


def _merges_batches(subject: Subject) -> bool:
    return _statistic(subject).merges_batches()


def _is_chunked(subject: Subject) -> bool:
    return issubclass(subject.cls, ChunkedStatistic)


_SOUND = ("dtypes", "deterministic", "changes_nothing")

CHECKS = (
    Check(settings_class),
    Check(import_is_quiet, applies=has_a_module),
    Check(equal_settings_are_one),
    Check(dtypes),
    Check(deterministic, after=("dtypes",)),
    Check(changes_nothing, after=("dtypes", "deterministic")),
    Check(parts_give_the_whole, after=_SOUND),
    Check(finish_goes_on, after=(*_SOUND, "parts_give_the_whole")),
    Check(merge_is_seeing_all, after=(*_SOUND, "parts_give_the_whole", "finish_goes_on")),
    Check(batches_merge_bit_for_bit, after=_SOUND, applies=_merges_batches),
    Check(chunks_add_bit_for_bit, after=_SOUND, applies=_is_chunked),
    Check(supports, after=_SOUND),
)
