"""Calibration data: from whatever names a data set to batches that the model is called with."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from attrs import frozen
from torch import Tensor, nn
from torch.utils.data import DataLoader

from coldpress.arguments import DATA_PREPARATION, DATA_SOURCE, DEFAULT_DATASET, DatasetArguments, warn_idle
from coldpress.calibration.batch import CalibrationBatch
from coldpress.calibration.collate import as_columns, collate
from coldpress.calibration.encoder import RowEncoder, pad_token
from coldpress.calibration.loss_mask import loss_mask_of
from coldpress.calibration.mixture import parts_of
from coldpress.calibration.model_inputs import ModelInputs
from coldpress.calibration.rows import find_rows
from coldpress.calibration.sample import Sample
from coldpress.calibration.summary import CalibrationPart, CalibrationSummary, summary_of
from coldpress.calibration.token_rows import MAIN
from coldpress.errors import CalibrationError
from coldpress.foreign import reading

log = logging.getLogger(__name__)

_LISTED = 8  # rows that a message names


@frozen(eq=False)
class CalibrationData:
    """What a model is calibrated on.

    Attributes:
        batches: arguments of its forward, on the CPU.
        summary: what they hold.
    """

    batches: list[CalibrationBatch]
    summary: CalibrationSummary


def load_calibration(
    arguments: DatasetArguments,
    tokenizer: Any,
    seed: int = 0,
    *,
    model: nn.Module | None = None,
    apart: bool = False,
    processor: Callable[[], Any] | None = None,
) -> CalibrationData:
    """Turn the data set that the arguments name into batches; the tokenizer is left exactly as it was.

    A `DataLoader`, or a list of batches that hold tensors with a batch dimension, is taken as it is.
    A row counts by what it holds: what the model is called with (`input_ids`, `pixel_values`, ...) goes to it, `images`
    and `audio` through the processor, conversations through the chat template, anything else is text in `text_column`.
    Lines of a text file are joined and cut into samples of one length.

    Args:
        arguments: which data, how many samples, how long, how batched.
        tokenizer: of the model, or its processor; may be None when the data need none.
        seed: of the shuffle; the same seed gives the same batches.
        model: whose forward takes the columns; None takes all of them.
        apart: where no batch size is asked for, one sample is one batch.
        processor: loads the model's processor, where rows hold images or sound and `tokenizer` is no more than that.

    Raises:
        CalibrationError: the data are missing, empty, or not of a form that can be used.
        ModelError: there is text and no tokenizer.
    """
    inputs = ModelInputs() if model is None else ModelInputs.of(model)
    if isinstance(arguments.dataset, DataLoader) or _is_batches(arguments.dataset):
        kind = type(arguments.dataset).__name__
        warn_idle(arguments, (*DATA_SOURCE, *DATA_PREPARATION), f"the batches of the {kind} are taken as they are")
        batches = _ready_batches(arguments.dataset, inputs, use_loss_mask=arguments.use_loss_mask)
        return _logged(CalibrationData(batches, summary_of(batches, f"batches of the {kind}")))
    if arguments.dataset is None and arguments.dataset_path is None:
        raise CalibrationError(
            f"this recipe reads calibration data: pass dataset=..., best text like that which your users send; "
            f"{DEFAULT_DATASET!r} is a short English one inside this package"
        )
    read: list[tuple[RowEncoder, list[Sample]]] = []
    for part in parts_of(arguments):
        encoder = RowEncoder(part, tokenizer, inputs, find_rows(part, seed), processor)
        read.append((encoder, _read(encoder)))
    samples = [sample for _, found in read for sample in found]
    size = 1 if apart and arguments.batch_size is None else arguments.batch_size
    batches = collate(
        samples,
        inputs,
        batch_size=size,
        collator=arguments.data_collator,
        pad=pad_token(tokenizer),
        use_loss_mask=arguments.use_loss_mask,
    )
    return _logged(CalibrationData(batches, _summary(batches, read, arguments)))


def load_batches(
    arguments: DatasetArguments, tokenizer: Any, seed: int = 0, *, model: nn.Module | None = None, apart: bool = False
) -> list[CalibrationBatch]:
    """The batches of `load_calibration`."""
    return load_calibration(arguments, tokenizer, seed, model=model, apart=apart).batches


def _read(encoder: RowEncoder) -> list[Sample]:
    """The samples of one data set.

    Raises:
        CalibrationError: there are none.
    """
    found = list(islice(encoder.samples(), encoder.arguments.num_calibration_samples))
    if not found:
        origin, count = encoder.rows.origin, encoder.rows.count
        raise CalibrationError(f"{origin}: none of its {count or ''} rows holds a token".replace("  ", " "))
    if encoder.lacking:
        more = f", and {len(encoder.lacking) - _LISTED} more" if len(encoder.lacking) > _LISTED else ""
        log.warning("rows were left out:\n%s%s", "\n".join(encoder.lacking[:_LISTED]), more)
    return found


def _summary(
    batches: Sequence[CalibrationBatch], read: Sequence[tuple[RowEncoder, list[Sample]]], arguments: DatasetArguments
) -> CalibrationSummary:
    samples = [sample for _, found in read for sample in found]
    encoders = [encoder for encoder, _ in read]
    parts = [CalibrationPart(one.rows.origin, len(found), one.arguments.num_calibration_samples) for one, found in read]
    return summary_of(
        batches,
        " and ".join(part.words() if len(parts) > 1 else part.dataset for part in parts),
        longest=max(sample.length or sample.decoder_length for sample in samples),
        packed=all(one.packs for one in encoders),
        empty=sum(one.empty for one in encoders),
        lacking=sum(len(one.lacking) for one in encoders),
        asked_samples=arguments.num_calibration_samples,
        asked_length=arguments.max_seq_length,
        cut=0 if callable(arguments.data_collator) else _cut(batches, samples),
        parts=tuple(parts),
    )


def _cut(batches: Sequence[CalibrationBatch], samples: Sequence[Sample]) -> int:
    """Tokens of samples that are in no batch."""
    places = sum(sample.length for sample in samples)
    return max(0, places - sum(int(batch["input_ids"].numel()) for batch in batches if "input_ids" in batch))


def _logged(data: CalibrationData) -> CalibrationData:
    log.info("%s", data.summary.line())
    for warning in data.summary.warnings():
        log.warning("%s", warning)
    return data


def _is_batches(dataset: Any) -> bool:
    """Whether this is a list of batches: dicts in which what the model reads is a tensor with a batch dimension."""
    if not isinstance(dataset, (list, tuple)) or not dataset or not isinstance(dataset[0], Mapping):
        return False
    main = next((name for name in MAIN if dataset[0].get(name) is not None), None)
    value = None if main is None else dataset[0][main]
    return main is not None and isinstance(value, Tensor) and value.ndim == MAIN[main] + 1


def _ready_batches(batches: Iterable[Any], inputs: ModelInputs, *, use_loss_mask: bool) -> list[CalibrationBatch]:
    found = []
    with reading("the data loader fails"):
        for index, batch in enumerate(batches):
            columns = as_columns(batch)
            mask = loss_mask_of(columns, f"batch {index}") if use_loss_mask else None
            found.append(inputs.batch(columns, mask))
    if not found:
        raise CalibrationError("the data loader is empty: calibration needs at least one batch")
    return found
