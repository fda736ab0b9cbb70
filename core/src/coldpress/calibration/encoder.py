"""Rows of any form to samples."""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from attrs import define, field
from torch import Tensor

from coldpress.arguments import DatasetArguments
from coldpress.calibration.batch import attended
from coldpress.calibration.chat_options import ChatOptions
from coldpress.calibration.conversation import MissingColumnError, read_text, renamed_columns
from coldpress.calibration.hub_dataset import HubDataset
from coldpress.calibration.model_inputs import ModelInputs
from coldpress.calibration.multimodal import MEDIA, is_processor, process, text_tokenizer
from coldpress.calibration.rows import Rows
from coldpress.calibration.sample import Sample, as_tensor
from coldpress.calibration.text_encoder import TextEncoder
from coldpress.calibration.token_rows import MAIN, arranged, batched, holds_inputs, sample_of, separate, unpacked
from coldpress.errors import CalibrationError, ModelError

log = logging.getLogger(__name__)

_ENDLESS = 1_000_000  # tokenizers that know no limit say a number larger than this
_PACKED = 2048  # tokens of a sample of running text, where nothing says how long one is
_TEXT_COLUMN = "text"  # of what a plugin makes of a row
_MOST_LACKING = 64  # rows without a column that are passed over before there is a sample


@define(eq=False)
class RowEncoder:
    """Rows to samples.

    Attributes:
        arguments: how long samples are, and what is done to rows before.
        tokenizer: of the model, or its processor, or None; it is left as it is.
        inputs: what the model takes.
        rows: what is encoded.
        load_processor: loads what reads images and sound; called where rows hold them and there is a tokenizer only.
        empty: how many rows held no token.
        lacking: why rows were left out that lack a column which others have.
    """

    arguments: DatasetArguments
    tokenizer: Any
    inputs: ModelInputs
    rows: Rows
    load_processor: Callable[[], Any] | None = None
    empty: int = 0
    lacking: list[str] = field(factory=list)

    @property
    def packs(self) -> bool:
        """Whether texts are joined and cut into samples of one length."""
        asked = self.arguments.concatenate_data
        return self.rows.is_running_text if asked is None else asked

    @cached_property
    def limit(self) -> int | None:
        """Tokens of a sample at most; None when nothing says it."""
        model = getattr(text_tokenizer(self.tokenizer), "model_max_length", None)
        model = model if isinstance(model, int) and 0 < model < _ENDLESS else None
        asked = self.arguments.max_seq_length
        if asked is None or model is None:
            return asked or model
        if asked > model:
            log.warning("max_seq_length %d is longer than the model's %d, which is used", asked, model)
        return min(asked, model)

    @cached_property
    def _processor(self) -> Any:
        """What reads images and sound; None where nothing does, and rows of the user's own are read as text."""
        found = self.tokenizer
        if not is_processor(found) and self.load_processor is not None:
            found = self.load_processor()
        return found if is_processor(found) else None

    @cached_property
    def texts(self) -> TextEncoder:
        """What makes samples of texts."""
        limit = None if self.packs else self.limit
        template = self._known.chat_template if self._known else None
        return TextEncoder(self.tokenizer, self.inputs, limit, self.arguments.use_loss_mask, template, self._chat)

    @cached_property
    def _chat(self) -> ChatOptions:
        """How conversations are written."""
        return ChatOptions.of(self.arguments.chat_template, self.arguments.chat_template_kwargs)

    def samples(self) -> Iterator[Sample]:
        """Samples that hold at least one token, in the order of the rows."""
        if self.rows.is_running_text:
            column = self.arguments.text_column
            length = self.limit if self.arguments.max_seq_length else min(self.limit or _PACKED, _PACKED)
            assert length is not None
            return self.texts.packed((str(row[column]) for _, row in self.rows), length)
        if self.packs:
            return self._blocks(self._each())
        if not self.arguments.pad_to_max_length:
            return self._each()
        return self._all_padded(self._each())

    def _each(self) -> Iterator[Sample]:
        made = False
        for where, row in self.rows:
            try:
                found = list(self._of_row(row, where))
            except MissingColumnError as error:
                self.lacking.append(str(error))
                if not made and len(self.lacking) >= _MOST_LACKING:
                    raise
                continue
            full = [sample for sample in found if sample.counted()]
            self.empty += len(found) - len(full)
            made = made or bool(full)
            yield from full
        if not made and self.lacking:
            raise MissingColumnError(self.lacking[0])

    def _of_row(self, row: Mapping[str, Any], where: str) -> Iterator[Sample]:
        row = unpacked(self._preprocessed(row, where))
        if holds_inputs(row, self.inputs, self._text_column):
            for part in separate(row):
                yield self._cut(sample_of(part, self.inputs, where, use_loss_mask=self.arguments.use_loss_mask), where)
            return
        media = [name for name in MEDIA if row.get(name) is not None]
        if media and (processor := self._processor) is not None:
            yield self._cut(
                arranged(process(row, processor, self.inputs, where, self._chat), self.inputs, where), where
            )
            return
        if media and self._known:
            raise ModelError(
                f"{where} holds {', '.join(media)}, which a tokenizer cannot read, and there is no processor beside "
                "the model: pass processor=AutoProcessor.from_pretrained(...)"
            )
        yield self.texts.sample(read_text(row, self._text_column, where), where, self._features(row))

    def _cut(self, sample: Sample, where: str) -> Sample:
        """The first tokens; all of them where some stand for an image or sound."""
        if self.limit is None or self.packs or max(sample.length, sample.decoder_length) <= self.limit:
            return sample
        if sample.others and sample.length:
            self.inputs.drop(
                ["max_seq_length"], f"{where} and maybe others are longer: not cut, since tokens may stand for images"
            )
            return sample
        return sample.cut(self.limit, self.limit)

    def _features(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What the model takes of a row beside its text."""
        if not any(name in row and self.inputs.takes(name) for name in MAIN):
            return {}
        names = [n for n in row if n not in ("labels", "attention_mask") and self.inputs.takes(n)]
        found = {n: as_tensor(row[n]) for n in names}
        return batched({n: value for n, value in found.items() if isinstance(value, Tensor)})

    def _all_padded(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        limit = self._need_limit("pad_to_max_length")
        if not self.inputs.takes("attention_mask"):
            raise CalibrationError(
                f"{self.inputs.model}.forward takes no attention_mask, so pad_to_max_length is not possible"
            )
        pad = pad_token(self.tokenizer)
        return (sample.padded(limit, sample.decoder_length, pad) for sample in samples)

    def _blocks(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """All tokens in a row, cut into blocks; the rest is a sample only if it is the only one."""
        length, made = self._need_limit("concatenate_data"), 0
        ids, counts = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
        for sample in samples:
            if sample.others or sample.decoder or "input_ids" not in sample.tokens:
                raise CalibrationError(
                    f"{self.rows.origin}: concatenate_data joins texts, and a row holds more than that"
                )
            real = attended(sample.tokens["attention_mask"])
            counted = real if sample.counts is None else sample.counts
            ids, counts = torch.cat([ids, sample.tokens["input_ids"][real]]), torch.cat([counts, counted[real]])
            while len(ids) >= length:
                yield self._block(ids[:length], counts[:length])
                ids, counts, made = ids[length:], counts[length:], made + 1
        if len(ids) and not made:
            yield self._block(ids, counts)

    def _block(self, ids: Tensor, counts: Tensor) -> Sample:
        tokens = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
        return Sample(tokens, counts=counts[None] if self.arguments.use_loss_mask else None)

    def _need_limit(self, what: str) -> int:
        if self.limit is None:
            raise CalibrationError(
                f"{what} needs max_seq_length: neither it nor the tokenizer says how long a sample is"
            )
        return self.limit

    @property
    def _known(self) -> HubDataset | None:
        return self.rows.known if self.arguments.preprocessing_func is None else None

    @property
    def _text_column(self) -> str:
        return _TEXT_COLUMN if self._known else self.arguments.text_column

    def _preprocessed(self, row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        if self._known is not None:
            return self._converted(row, self._known, where)
        row = renamed_columns(row, self.arguments.column_map, where)
        if self.arguments.preprocessing_func is None:
            return row
        changed: Any = self.arguments.preprocessing_func(dict(row))
        if not isinstance(changed, Mapping):
            raise CalibrationError(f"preprocessing_func must return a dict of columns, got {type(changed).__name__}")
        return {**row, **changed}

    def _converted(self, row: Mapping[str, Any], known: HubDataset, where: str) -> Mapping[str, Any]:
        try:
            return known.to_sample(row)
        except Exception as error:  # of a plugin, on data that it may not be made for
            raise CalibrationError(
                f"{where} is not of the form of {known.repo_id}: {type(error).__name__}: {error}; it has the columns "
                f"{', '.join(map(str, row)) or 'none'}"
            ) from error


def pad_token(tokenizer: Any) -> int:
    """What fills a batch; any token will do, since the mask hides it."""
    tokenizer = text_tokenizer(tokenizer)
    for name in ("pad_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if isinstance(token, int):
            return token
    return 0
