"""Texts to tokens: no more of a text than is used, or all of them packed into samples of one length."""

from collections.abc import Iterable, Iterator
from typing import Any

from coldpress.errors import CalibrationError

_CHARACTERS = 8  # of a text that are tokenized first, for each token that is wanted; there are 3 to 5 in most
_SPARE = 16  # tokens beyond those wanted, so that the end of what is tokenized changes none of them


def tokenized(tokenizer: Any, text: str, *, limit: int | None, special: bool) -> list[int]:
    """The first tokens of a text.

    Args:
        tokenizer: a copy that may be changed: fast ones keep the truncation of their last call.
        text: of any length; no more of it is tokenized than is needed.
        limit: tokens at most; None for all of them.
        special: with the special tokens that a text has.
    """
    if limit is None:
        return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    keeps_end, size = getattr(tokenizer, "truncation_side", "right") == "left", _CHARACTERS * (limit + _SPARE)

    def cut(length: int) -> list[int]:
        part = text[-size:] if keeps_end else text[:size]
        return list(tokenizer(part, add_special_tokens=special, truncation=True, max_length=length)["input_ids"])

    while size < len(text) and len(cut(limit + _SPARE)) < limit + _SPARE:
        size *= 4
    return cut(limit)[:limit]  # tokenizers give more where there is no room beside special tokens


def packed(tokenizer: Any, texts: Iterable[str], length: int) -> Iterator[list[int]]:
    """All texts in a row, cut into samples that begin and end as a text does; the rest is one if it is the only one.

    Args:
        tokenizer: a copy that may be changed.
        texts: that follow each other; no more of them are read than samples are taken.
        length: tokens of a sample, special ones included.

    Raises:
        CalibrationError: there is no room beside the special tokens.
    """
    begin, end = _special_tokens(tokenizer)
    room = length - len(begin) - len(end)
    if room < 1:
        raise CalibrationError(f"max_seq_length={length} leaves no room beside the special tokens of a sample")
    ids: list[int] = []
    made = 0
    for text in texts:
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        used = len(ids) // room * room
        for start in range(0, used, room):
            yield [*begin, *ids[start : start + room], *end]
        ids, made = ids[used:], made + used
    if ids and not made:
        yield [*begin, *ids, *end]


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer writes before and after a text."""
    bare, full = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []
