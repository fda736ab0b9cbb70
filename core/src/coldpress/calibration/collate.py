"""Samples of tokens joined to batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor
from torch.nn import functional

from coldpress.errors import CalibrationError


@frozen(eq=False)
class Sample:
    """One sequence of tokens, and what the model takes beside them.

    Attributes:
        ids: token ids.
        mask: 1 for a token, 0 for padding; as long as `ids`.
        others: further arguments of the forward, each as in a batch of this sample alone.
        sequence: the argument that the ids are.
        row: that the sample was made of, if that holds tokens already.
    """

    ids: list[int]
    mask: list[int]
    others: Mapping[str, Tensor] = field(factory=dict)
    sequence: str = "input_ids"
    row: Mapping[str, Any] | None = None

    def cut(self, length: int) -> "Sample":
        """The first `length` tokens."""
        others = {
            name: value[:, :length] if self._is_per_token(value) else value for name, value in self.others.items()
        }
        return evolve(self, ids=self.ids[:length], mask=self.mask[:length], others=others)

    def padded(self, length: int, pad: int) -> "Sample":
        """Padded on the right, where it moves no position of a token."""
        rest = length - len(self.ids)
        others = {
            name: functional.pad(value, (0, rest)) if self._is_per_token(value) else value
            for name, value in self.others.items()
        }
        return evolve(self, ids=self.ids + [pad] * rest, mask=self.mask + [0] * rest, others=others)

    def columns(self) -> dict[str, Any]:
        """What a collator that is a function is handed: the row as it was, but for tokens that were cut off."""
        if self.row is None:
            return {self.sequence: self.ids, "attention_mask": self.mask, **self.others}
        tokens = self.row["input_ids"]
        nested = torch.as_tensor(tokens).ndim > 1

        def like(values: list[int]) -> Any:
            found = [values] if nested else values
            return torch.tensor(found) if isinstance(tokens, Tensor) else found

        return {**self.row, "input_ids": like(self.ids), "attention_mask": like(self.mask)}

    def _is_per_token(self, value: Tensor) -> bool:
        """Whether a tensor has an entry for each token: [1, S] whole numbers, such as token_type_ids."""
        return value.shape == (1, len(self.ids)) and not value.is_floating_point()


_INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values")  # one of them a model needs

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
            handed a list of rows (dicts with `input_ids`, `attention_mask` and what else they hold) and returns the
            batch.
        pad: token id of padding.

    Returns:
        `input_ids` and `attention_mask`, [B, S] int64 each, and what else the samples hold, joined along the first dim.

    Raises:
        CalibrationError: the function returns no mapping with `input_ids`, or the samples do not go together.
    """
    batches = []
    for part in _parts(samples, 1 if batch_size is None and callable(collator) else batch_size):
        if callable(collator):
            batches.append(as_batch(collator([sample.columns() for sample in part])))
            continue
        lengths = [len(sample.ids) for sample in part]
        if collator == "truncation":
            part = [sample.cut(min(lengths)) for sample in part]
        else:
            part = [sample.padded(max(lengths), pad) for sample in part]
        batches.append(_joined(part))
    return batches


def _joined(part: Sequence[Sample]) -> dict[str, Tensor]:
    """Samples of one length as a batch."""
    first = part[0]
    if any(sample.others.keys() != first.others.keys() or sample.sequence != first.sequence for sample in part):
        raise CalibrationError("samples of a batch hold different columns: pass batch_size=1")
    mask = "attention_mask" if first.sequence == "input_ids" else "decoder_attention_mask"
    batch = {
        first.sequence: torch.tensor([sample.ids for sample in part]),  # [B, S]
        mask: torch.tensor([sample.mask for sample in part]),
    }
    for name in first.others:
        try:
            batch[name] = torch.cat([sample.others[name] for sample in part])
        except RuntimeError as error:
            raise CalibrationError(f"samples of a batch differ in the shape of {name}: pass batch_size=1") from error
    return batch


def _parts(samples: Sequence[Sample], size: int | None) -> Iterator[Sequence[Sample]]:
    """Neighbours, `size` at a time, or of one length."""
    if size is not None:
        yield from (samples[start : start + size] for start in range(0, len(samples), size))
        return
    for (length, alone), alike in groupby(samples, key=lambda sample: (len(sample.ids), bool(sample.others))):
        yield from _parts(list(alike), 1 if alone else max(1, JOINED // max(1, length)))


def as_batch(found: Any) -> dict[str, Tensor]:
    """What a loader or a collator hands out, as a dict of tensors; other entries go along unchanged.

    Raises:
        CalibrationError: it is no mapping, or nothing in it can be given to a model.
    """
    if not isinstance(found, Mapping):
        raise CalibrationError(f"a batch must be a dict with input_ids, got {type(found).__name__}")
    if not any(name in found for name in _INPUTS):
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
