"""Samples of tokens joined to batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from coldpress.errors import CalibrationError


@frozen(eq=False)
class Sample:
    """One sequence of tokens.

    Attributes:
        ids: token ids.
        mask: 1 for a token, 0 for padding; as long as `ids`.
    """

    ids: list[int]
    mask: list[int]

    def cut(self, length: int) -> "Sample":
        """The first `length` tokens."""
        return Sample(self.ids[:length], self.mask[:length])

    def padded(self, length: int, pad: int) -> "Sample":
        """Padded on the right, where it moves no position of a token."""
        rest = length - len(self.ids)
        return Sample(self.ids + [pad] * rest, self.mask + [0] * rest)


JOINED = 2048
"""Tokens of a batch that is made of neighbours of one length: with more, forwards become no faster on a CPU."""


def collate(
    samples: Sequence[Sample], *, batch_size: int | None, collator: str | Callable[[list[Any]], Any], pad: int
) -> list[dict[str, Tensor]]:
    """Join neighbouring samples to batches.

    Args:
        samples: in the order of use.
        batch_size: samples of a batch, B; the last batch may have fewer.  None puts neighbours of one length together,
            up to `JOINED` tokens, or keeps them apart for a collator that is a function.
        collator: "truncation" cuts to the shortest sample of the batch, "padding" pads to the longest, a function is
            handed a list of dicts with `input_ids` and `attention_mask` and returns the batch.
        pad: token id of padding.

    Returns:
        `input_ids` and `attention_mask`, [B, S] int64 each.

    Raises:
        CalibrationError: the function returns no mapping with `input_ids`.
    """
    batches = []
    for part in _parts(samples, 1 if batch_size is None and callable(collator) else batch_size):
        if callable(collator):
            batches.append(as_batch(collator([{"input_ids": s.ids, "attention_mask": s.mask} for s in part])))
            continue
        lengths = [len(sample.ids) for sample in part]
        if collator == "truncation":
            part = [sample.cut(min(lengths)) for sample in part]
        else:
            part = [sample.padded(max(lengths), pad) for sample in part]
        ids = torch.tensor([sample.ids for sample in part])  # [B, S]
        batches.append({"input_ids": ids, "attention_mask": torch.tensor([sample.mask for sample in part])})
    return batches


def _parts(samples: Sequence[Sample], size: int | None) -> Iterator[Sequence[Sample]]:
    """Neighbours, `size` at a time, or of one length."""
    if size is not None:
        yield from (samples[start : start + size] for start in range(0, len(samples), size))
        return
    for length, alike in groupby(samples, key=lambda sample: len(sample.ids)):
        yield from _parts(list(alike), max(1, JOINED // max(1, length)))


def as_batch(found: Any) -> dict[str, Tensor]:
    """What a loader or a collator hands out, as a dict of tensors; other entries go along unchanged.

    Raises:
        CalibrationError: it is no mapping, or nothing in it can be given to a model.
    """
    if not isinstance(found, Mapping):
        raise CalibrationError(f"a batch must be a dict with input_ids, got {type(found).__name__}")
    if "input_ids" not in found and "inputs_embeds" not in found and "pixel_values" not in found:
        raise CalibrationError(f"a batch must hold input_ids; this one holds {', '.join(map(str, found)) or 'nothing'}")
    batch = dict(found)
    for name in ("input_ids", "attention_mask"):
        if name in batch:
            tensor = torch.as_tensor(batch[name])
            batch[name] = tensor if tensor.ndim > 1 else tensor[None]
    if "input_ids" in batch and "attention_mask" not in batch:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    return batch


def count_tokens(batch: Mapping[str, Any]) -> int | None:
    """Tokens of a batch, without padding; None where nothing tells how many there are."""
    mask, ids, vectors = (batch.get(name) for name in ("attention_mask", "input_ids", "inputs_embeds"))
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return int(mask.count_nonzero())
    if isinstance(ids, Tensor):
        return ids.numel()
    return vectors.shape[:-1].numel() if isinstance(vectors, Tensor) else None
