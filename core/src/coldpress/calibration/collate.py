"""Samples joined to batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from coldpress.calibration.batch import CalibrationBatch
from coldpress.calibration.loss_mask import loss_mask_of
from coldpress.calibration.model_inputs import ModelInputs
from coldpress.calibration.sample import Sample, as_tensor, joined
from coldpress.calibration.token_rows import batched
from coldpress.errors import CalibrationError

JOINED = 2048
"""Tokens of a batch that is made of neighbours of one length: with more, forwards become no faster on a CPU."""

Collator = str | Callable[[list[Any]], Any]


def collate(
    samples: Sequence[Sample],
    inputs: ModelInputs,
    *,
    batch_size: int | None,
    collator: Collator,
    pad: int,
    use_loss_mask: bool = False,
) -> list[CalibrationBatch]:
    """Join samples to batches.

    Args:
        samples: in the order of use.
        inputs: what the model takes.
        batch_size: samples of a batch, B, which are of near length and one kind; a batch may have fewer.  None puts
            neighbours of one length together, up to `JOINED` tokens, but for samples with images and the like, and
            for a collator that is a function.
        collator: "truncation" cuts to the shortest sample of the batch, "padding" pads to the longest, a function is
            handed a list of rows and returns the batch.
        pad: token id of padding.
        use_loss_mask: what a function returns says which tokens count.

    Raises:
        CalibrationError: the function returns no mapping, or the model takes no mask and samples are to be padded.
    """
    batches = []
    for part in _parts(samples, 1 if batch_size is None and callable(collator) else batch_size):
        if callable(collator):
            found = as_columns(collator([sample.for_collator() for sample in part]))
            batches.append(
                inputs.batch(found, loss_mask_of(found, "a batch of the data_collator") if use_loss_mask else None)
            )
            continue
        lengths, others = [s.length for s in part], [s.decoder_length for s in part]
        if collator == "truncation":
            part = [sample.cut(min(lengths), min(others)) for sample in part]
        else:
            if len(set(lengths)) > 1 and not inputs.takes("attention_mask"):
                raise CalibrationError(
                    f"{inputs.model}.forward takes no attention_mask, so samples cannot be padded: pass batch_size=1"
                )
            part = [sample.padded(max(lengths), max(others), pad) for sample in part]
        batches.append(inputs.batch(*joined(part)))
    return batches


def _parts(samples: Sequence[Sample], size: int | None) -> Iterator[Sequence[Sample]]:
    """Samples of near length, `size` at a time, in the order of the first of each; or neighbours of one length."""
    if size is None:
        for (_, length, _, single), alike in groupby(samples, key=_alike):
            same = list(alike)
            number = 1 if single else max(1, JOINED // max(1, length))
            yield from (same[start : start + number] for start in range(0, len(same), number))
        return
    kinds = [sample.kind for sample in samples]
    ranks = {kind: rank for rank, kind in enumerate(dict.fromkeys(kinds))}
    order = sorted(range(len(samples)), key=lambda i: (ranks[kinds[i]], samples[i].length, samples[i].decoder_length))
    parts: list[list[int]] = []
    for index in order:
        if parts and len(parts[-1]) < size and kinds[parts[-1][0]] == kinds[index]:
            parts[-1].append(index)
        else:
            parts.append([index])
    for part in sorted(parts, key=min):
        yield [samples[index] for index in sorted(part)]


def _alike(sample: Sample) -> tuple[object, int, int, bool]:
    return sample.kind, sample.length, sample.decoder_length, bool(sample.others)


def as_columns(found: Any) -> dict[str, Any]:
    """What a loader or a collator hands out, as columns with a batch dimension; what is no tensor goes along.

    Raises:
        CalibrationError: it is no mapping.
    """
    if not isinstance(found, Mapping):
        raise CalibrationError(f"a batch must be a dict with input_ids, got {type(found).__name__}")
    columns = {name: as_tensor(value) for name, value in found.items()}
    ids: Any = columns.get("input_ids")
    return batched(columns) if getattr(ids, "ndim", None) == 1 else columns
