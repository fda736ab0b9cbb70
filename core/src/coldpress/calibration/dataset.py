"""Calibration data: from whatever names a data set to batches of tokens."""

import logging
from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from coldpress.arguments import DATA_PREPARATION, DATA_SOURCE, DEFAULT_DATASET, DatasetArguments, warn_idle
from coldpress.calibration.collate import Sample, as_batch, collate
from coldpress.calibration.rows import Rows, find_rows
from coldpress.errors import CalibrationError, ModelError, suggest

log = logging.getLogger(__name__)

_ENDLESS = 1_000_000  # tokenizers that know no limit say a number larger than this
_CHAT_COLUMN = "messages"


def load_batches(
    arguments: DatasetArguments, tokenizer: Any, seed: int = 0, *, apart: bool = False
) -> list[dict[str, Tensor]]:
    """Turn the data set that the arguments name into batches; the tokenizer is left exactly as it was.

    A `DataLoader`, or a list of batches that hold tensors [B, S], is taken as it is.
    A row counts by what it holds: `input_ids` are tokens already, `messages` go through the chat template, anything
    else is text in `text_column`.

    Args:
        arguments: which data, how many samples, how long, how batched.
        tokenizer: of the model; may be None when the data are tokens already.
        seed: of the shuffle; the same seed gives the same batches.
        apart: where no batch size is asked for, one sample is one batch.

    Returns:
        `input_ids` and `attention_mask`, [B, S] int64 each, on the CPU.

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
    encoder = _Encoder(arguments, tokenizer, rows.origin)
    samples = list(islice(encoder.samples(rows), arguments.num_calibration_samples))
    if not samples:
        raise CalibrationError(f"{rows.origin}: none of its {rows.count or ''} rows holds a token".replace("  ", " "))
    wanted = arguments.num_calibration_samples
    if wanted is not None and len(samples) < wanted:
        log.info("%s gives %d samples where %d were asked for; all of them are used", rows.origin, len(samples), wanted)
    size = 1 if apart and arguments.batch_size is None else arguments.batch_size
    return collate(samples, batch_size=size, collator=arguments.data_collator, pad=_pad_token(tokenizer))


class _Encoder:
    """Rows to samples."""

    def __init__(self, arguments: DatasetArguments, tokenizer: Any, origin: str) -> None:
        self.arguments = arguments
        self.original = tokenizer
        self.origin = origin
        self.limit = _limit(arguments, tokenizer)
        self._copy: Any = None

    @property
    def tokenizer(self) -> Any:
        """A copy: a fast tokenizer keeps the truncation of its last call, and would be saved with it."""
        if self._copy is None:
            if self.original is None:
                raise ModelError(
                    "calibration with text needs a tokenizer, and there is none beside the model: pass tokenizer=, or "
                    "data with input_ids"
                )
            self._copy = deepcopy(self.original)
        return self._copy

    def samples(self, rows: Rows) -> Iterator[Sample]:
        """Samples that hold at least one token, in the order of the rows."""
        found = (self._sample(row) for row in rows)
        full = (sample for sample in found if any(sample.mask))
        if self.arguments.concatenate_data:
            return self._blocks(full)
        if not self.arguments.pad_to_max_length:
            return full
        limit = self._need_limit("pad_to_max_length")
        return (sample.padded(limit, _pad_token(self.original)) for sample in full)

    def _blocks(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """All tokens in a row, cut into blocks; the rest is a sample only if it is the only one."""
        length, ids, made = self._need_limit("concatenate_data"), list[int](), 0
        for sample in samples:
            ids += [token for token, real in zip(sample.ids, sample.mask, strict=True) if real]
            while len(ids) >= length:
                yield Sample(ids[:length], [1] * length)
                ids, made = ids[length:], made + 1
        if ids and not made:
            yield Sample(ids, [1] * len(ids))

    def _sample(self, row: Mapping[str, Any]) -> Sample:
        row = self._preprocessed(row)
        if "input_ids" in row:
            ids = torch.as_tensor(row["input_ids"]).flatten().tolist()
            mask = row.get("attention_mask")
            found = Sample(ids, [1] * len(ids) if mask is None else torch.as_tensor(mask).flatten().tolist())
            if len(found.mask) != len(ids):
                raise CalibrationError(f"{self.origin}: a row has {len(ids)} input_ids and a mask of {len(found.mask)}")
            return found if self.limit is None or self.arguments.concatenate_data else found.cut(self.limit)
        return self._encoded(*self._text(row))

    def _preprocessed(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.arguments.preprocessing_func is None:
            return row
        changed: Any = self.arguments.preprocessing_func(dict(row))
        if not isinstance(changed, Mapping):
            raise CalibrationError(f"preprocessing_func must return a dict of columns, got {type(changed).__name__}")
        return {**row, **changed}

    def _text(self, row: Mapping[str, Any]) -> tuple[str, bool]:
        """The text of a row, and whether it still lacks special tokens, which a chat template writes itself."""
        column = self.arguments.text_column
        if column not in row and _CHAT_COLUMN in row:
            column = _CHAT_COLUMN
        if column not in row:
            raise CalibrationError(
                f"{self.origin} has no column {column!r}{suggest(column, row)}; its columns are "
                f"{', '.join(map(str, row)) or 'none'}: name the one that holds text with text_column="
            )
        value = row[column]
        if isinstance(value, (list, tuple)) and all(isinstance(turn, Mapping) for turn in value):
            return self._chat(value), False
        if value is None or isinstance(value, str):
            return value or "", True
        raise CalibrationError(f"{self.origin}: column {column!r} holds {type(value).__name__}, not text")

    def _chat(self, turns: Any) -> str:
        if not turns:
            return ""
        if not getattr(self.tokenizer, "chat_template", None):
            raise CalibrationError(
                f"{self.origin} holds conversations, and the tokenizer has no chat template: set its "
                "chat_template, or turn them to text with preprocessing_func"
            )
        return str(self.tokenizer.apply_chat_template(list(turns), tokenize=False))

    def _encoded(self, text: str, add_special_tokens: bool) -> Sample:
        if not text.strip():
            return Sample([], [])
        cut = {} if self.limit is None or self.arguments.concatenate_data else {"max_length": self.limit}
        ids = self.tokenizer(text, add_special_tokens=add_special_tokens, truncation=bool(cut), **cut)["input_ids"]
        return Sample(list(ids), [1] * len(ids))

    def _need_limit(self, what: str) -> int:
        if self.limit is None:
            raise CalibrationError(
                f"{what} needs max_seq_length: neither it nor the tokenizer says how long a sample is"
            )
        return self.limit


def _limit(arguments: DatasetArguments, tokenizer: Any) -> int | None:
    """Tokens of a sample at most; None when nobody says."""
    model = getattr(tokenizer, "model_max_length", None)
    model = model if isinstance(model, int) and model < _ENDLESS else None
    if arguments.max_seq_length is None or model is None:
        return arguments.max_seq_length or model
    if arguments.max_seq_length > model:
        log.warning("max_seq_length %d is longer than the model's %d, which is used", arguments.max_seq_length, model)
    return min(arguments.max_seq_length, model)


def _pad_token(tokenizer: Any) -> int:
    """What fills a batch; any token will do, since the mask hides it."""
    for name in ("pad_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if isinstance(token, int):
            return token
    return 0


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
