"""Calibration data: from whatever names a data set to batches of tokens."""

import logging
from collections.abc import Mapping
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from coldpress.arguments import DATA_PREPARATION, DATA_SOURCE, DEFAULT_DATASET, DatasetArguments, warn_idle
from coldpress.calibration.collate import as_batch, collate
from coldpress.calibration.encoder import Encoder, pad_token
from coldpress.calibration.rows import find_rows
from coldpress.errors import CalibrationError

log = logging.getLogger(__name__)


def load_batches(
    arguments: DatasetArguments,
    tokenizer: Any,
    seed: int = 0,
    *,
    apart: bool = False,
    takes: frozenset[str] = frozenset(),
) -> list[dict[str, Tensor]]:
    """Turn the data set that the arguments name into batches; the tokenizer is left exactly as it was.

    A `DataLoader`, or a list of batches that hold tensors [B, S], is taken as it is.
    A row counts by what it holds: `input_ids` are tokens already, `images` and `audio` go through the processor,
    `messages` through the chat template, anything else is text in `text_column`.

    Args:
        arguments: which data, how many samples, how long, how batched.
        tokenizer: of the model, or its processor; may be None when the data are tokens already.
        seed: of the shuffle; the same seed gives the same batches.
        apart: where no batch size is asked for, one sample is one batch.
        takes: arguments of the model's forward; columns beside `input_ids` that it takes go along.

    Returns:
        `input_ids` and `attention_mask`, [B, S] int64 each, and what else a sample holds, on the CPU.

    Raises:
        CalibrationError: the data are missing, empty, or not of a form that can be used.
        ModelError: there is text and no tokenizer.
    """
    if isinstance(arguments.dataset, DataLoader) or _is_batches(arguments.dataset):
        kind = type(arguments.dataset).__name__
        warn_idle(arguments, (*DATA_SOURCE, *DATA_PREPARATION), f"the batches of the {kind} are taken as they are")
        return _ready_batches(arguments.dataset)
    if arguments.dataset is None and arguments.dataset_path is None:
        raise CalibrationError(
            f"this recipe reads calibration data: pass dataset=..., best text like that which your users send; "
            f"{DEFAULT_DATASET!r} is a short English one inside this package"
        )
    rows = find_rows(arguments, seed)
    encoder = Encoder(arguments, tokenizer, rows, takes)
    samples = list(islice(encoder.samples(rows), arguments.num_calibration_samples))
    if not samples:
        raise CalibrationError(f"{rows.origin}: none of its {rows.count or ''} rows holds a token".replace("  ", " "))
    wanted = arguments.num_calibration_samples
    if wanted is not None and len(samples) < wanted:
        log.info("%s gives %d samples where %d were asked for; all of them are used", rows.origin, len(samples), wanted)
    size = 1 if apart and arguments.batch_size is None else arguments.batch_size
    return collate(samples, batch_size=size, collator=arguments.data_collator, pad=pad_token(tokenizer))


def _is_batches(dataset: Any) -> bool:
    """Whether this is a list of batches: dicts whose input_ids are tensors [B, S]."""
    if not isinstance(dataset, (list, tuple)) or not dataset or not isinstance(dataset[0], Mapping):
        return False
    ids = dataset[0].get("input_ids")
    return isinstance(ids, Tensor) and ids.ndim == 2


def _ready_batches(batches: Any) -> list[dict[str, Tensor]]:
    found = [as_batch(batch) for batch in batches]
    if not found:
        raise CalibrationError("the data loader is empty: calibration needs at least one batch")
    return found
