"""Rows of any form to samples of tokens."""

import logging
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch

from coldpress.arguments import DatasetArguments
from coldpress.calibration.collate import Sample
from coldpress.calibration.hub_dataset import HubDataset
from coldpress.calibration.multimodal import MEDIA, is_processor, process, text_tokenizer
from coldpress.calibration.rows import Rows
from coldpress.errors import CalibrationError, ModelError, suggest

log = logging.getLogger(__name__)

_ENDLESS = 1_000_000  # tokenizers that know no limit say a number larger than this
_CHAT_COLUMNS = ("messages", "conversations")
_TEXT_COLUMN = "text"  # of what a plugin makes of a row
_ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's to those of chat templates
_TOKEN_COLUMNS = frozenset({"input_ids", "attention_mask"})


class Encoder:
    """Rows to samples.

    Args:
        arguments: how long samples are, and what is done to rows before.
        tokenizer: of the model, or its processor, or None.
        rows: what is encoded.
        takes: arguments of the model's forward.
    """

    def __init__(self, arguments: DatasetArguments, tokenizer: Any, rows: Rows, takes: frozenset[str]) -> None:
        self.arguments = arguments
        self.original = tokenizer
        self.origin = rows.origin
        self.known = rows.known if arguments.preprocessing_func is None else None
        self.text_column = _TEXT_COLUMN if self.known else arguments.text_column
        self.limit = _limit(arguments, text_tokenizer(tokenizer))
        ignored = _TOKEN_COLUMNS if "decoder_input_ids" in takes else {*_TOKEN_COLUMNS, "labels"}  # no loss is needed
        self.takes = takes - ignored
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
            self._copy = deepcopy(text_tokenizer(self.original))
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
        return (sample.padded(limit, pad_token(self.original)) for sample in full)

    def _blocks(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """All tokens in a row, cut into blocks; the rest is a sample only if it is the only one."""
        length, ids, made = self._need_limit("concatenate_data"), list[int](), 0
        for sample in samples:
            if sample.others:
                raise CalibrationError(f"{self.origin}: concatenate_data joins texts, and a row holds more than that")
            ids += [token for token, real in zip(sample.ids, sample.mask, strict=True) if real]
            while len(ids) >= length:
                yield Sample(ids[:length], [1] * length)
                ids, made = ids[length:], made + 1
        if ids and not made:
            yield Sample(ids, [1] * len(ids))

    def _sample(self, row: Mapping[str, Any]) -> Sample:
        row = self._preprocessed(row)
        if "input_ids" in row:
            return self._tokenized(row)
        if any(row.get(name) is not None for name in MEDIA) and (self.known or is_processor(self.original)):
            if not is_processor(self.original):
                raise ModelError(
                    f"{self.origin} holds {', '.join(name for name in MEDIA if row.get(name) is not None)}, which a "
                    "tokenizer cannot read: pass processor=AutoProcessor.from_pretrained(...)"
                )
            return process(row, self.original, limit=self.limit, origin=self.origin, takes=self.takes)
        return self._encoded(*self._text(row))

    def _tokenized(self, row: Mapping[str, Any]) -> Sample:
        """A row that holds tokens, with what else of it the model takes."""
        tokens = torch.as_tensor(row["input_ids"])
        if tokens.ndim > 1 and tokens.numel() != tokens.shape[-1]:
            raise CalibrationError(
                f"{self.origin}: a row holds {len(tokens)} samples: flatten what a map with batched=True has made"
            )
        ids, mask = tokens.flatten().tolist(), row.get("attention_mask")
        mask = [1] * len(ids) if mask is None else torch.as_tensor(mask).flatten().tolist()
        if len(mask) != len(ids):
            raise CalibrationError(f"{self.origin}: a row has {len(ids)} input_ids and a mask of {len(mask)}")
        batched = tokens.ndim > 1  # other columns have a dim for the one sample, too
        others = {
            name: torch.as_tensor(value) if batched else torch.as_tensor(value)[None]
            for name, value in row.items()
            if name in self.takes and value is not None
        }
        found = Sample(ids, mask, others, row=row)
        return found if self.limit is None or self.arguments.concatenate_data else found.cut(self.limit)

    def _preprocessed(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.known is not None:
            return self._converted(row, self.known)
        if self.arguments.preprocessing_func is None:
            return row
        changed: Any = self.arguments.preprocessing_func(dict(row))
        if not isinstance(changed, Mapping):
            raise CalibrationError(f"preprocessing_func must return a dict of columns, got {type(changed).__name__}")
        return {**row, **changed}

    def _converted(self, row: Mapping[str, Any], known: HubDataset) -> Mapping[str, Any]:
        try:
            return known.to_sample(row)
        except Exception as error:  # of a plugin, on data that it may not be made for
            raise CalibrationError(
                f"{self.origin}: a row is not of the form of {known.repo_id}: {type(error).__name__}: {error}; it has "
                f"the columns {', '.join(map(str, row)) or 'none'}"
            ) from error

    def _text(self, row: Mapping[str, Any]) -> tuple[str, bool]:
        """The text of a row, and whether it still lacks special tokens, which a chat template writes itself."""
        column = self.text_column
        if column not in row:
            column = next((name for name in _CHAT_COLUMNS if name in row), column)
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
        writer = self.tokenizer
        if not getattr(writer, "chat_template", None) and getattr(self.original, "chat_template", None):
            writer = self.original  # a processor may have the template that its tokenizer lacks
        elif not getattr(writer, "chat_template", None):
            writer.chat_template = self._need_template()  # of the copy
        try:
            return str(writer.apply_chat_template([_as_turn(turn) for turn in turns], tokenize=False))
        except Exception as error:  # of a template, which may refuse a role or an order
            raise CalibrationError(
                f"{self.origin}: the chat template refuses a conversation: {type(error).__name__}: {error}"
            ) from error

    def _need_template(self) -> str:
        template = self.known.chat_template if self.known else None
        if template is None:
            raise CalibrationError(
                f"{self.origin} holds conversations, and the tokenizer has no chat template: set its "
                "chat_template, or turn them to text with preprocessing_func"
            )
        log.warning("the tokenizer has no chat template: conversations of %s are written in a plain one", self.origin)
        return template

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


def _as_turn(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    """A turn of a conversation with the keys of chat templates; ShareGPT's are `from` and `value`."""
    if "role" in turn or not {"from", "value"} <= turn.keys():
        return turn
    return {"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}


def _limit(arguments: DatasetArguments, tokenizer: Any) -> int | None:
    """Tokens of a sample at most; None when nobody says."""
    model = getattr(tokenizer, "model_max_length", None)
    model = model if isinstance(model, int) and model < _ENDLESS else None
    if arguments.max_seq_length is None or model is None:
        return arguments.max_seq_length or model
    if arguments.max_seq_length > model:
        log.warning("max_seq_length %d is longer than the model's %d, which is used", arguments.max_seq_length, model)
    return min(arguments.max_seq_length, model)


def pad_token(tokenizer: Any) -> int:
    """What fills a batch; any token will do, since the mask hides it."""
    tokenizer = text_tokenizer(tokenizer)
    for name in ("pad_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if isinstance(token, int):
            return token
    return 0
