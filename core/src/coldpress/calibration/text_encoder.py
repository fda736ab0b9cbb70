"""Texts and conversations to samples of tokens."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from typing import Any

import torch
from attrs import define
from torch import Tensor

from coldpress.calibration.chat import answers_marked, plain, rendered
from coldpress.calibration.chat_options import PLAIN, ChatOptions
from coldpress.calibration.conversation import Conversation, Text
from coldpress.calibration.model_inputs import ModelInputs
from coldpress.calibration.multimodal import text_tokenizer
from coldpress.calibration.sample import Sample
from coldpress.calibration.tokens import packed, tokenized
from coldpress.errors import CalibrationError, ModelError
from coldpress.foreign import reading

log = logging.getLogger(__name__)


@define(eq=False)
class TextEncoder:
    """Texts to samples.

    Attributes:
        tokenizer: of the model, or its processor, or None; a copy of it is used.
        inputs: what the model takes.
        limit: tokens of a sample at most; None keeps all.
        use_loss_mask: the chat template says which tokens count.
        chat_template: for a tokenizer that has none; None refuses conversations then.
        chat: how conversations are written, whatever the tokenizer has.
    """

    tokenizer: Any
    inputs: ModelInputs
    limit: int | None
    use_loss_mask: bool = False
    chat_template: str | None = None
    chat: ChatOptions = PLAIN

    @cached_property
    def copy(self) -> Any:
        """A copy of the tokenizer: a fast one keeps the truncation of its last call, and would be saved with it."""
        found = text_tokenizer(self.tokenizer)
        if found is None or not callable(found):
            kind = "there is none beside the model" if found is None else f"{type(found).__name__} reads no text"
            raise ModelError(
                f"calibration with text needs a tokenizer, and {kind}: pass tokenizer=, or data with input_ids"
            )
        return deepcopy(found)

    def sample(self, found: Text | Conversation, where: str, others: Mapping[str, Any]) -> Sample:
        """A sample of what a row says; without tokens where that is nothing.

        Args:
            found: in the row.
            where: which row of which data set, for messages.
            others: what else of the row the model takes, such as features of sound.
        """
        if isinstance(found, Conversation):
            return self._conversation(found, where, others)
        if self.use_loss_mask:
            raise CalibrationError(f"{where} is text without a loss mask, which use_loss_mask needs")
        return self._sample(self._ids(found.text, where, special=True), others)

    def packed(self, texts: Iterable[str], length: int) -> Iterator[Sample]:
        """Running text in samples of one length."""
        if self.use_loss_mask:
            raise CalibrationError("running text has no loss mask, which use_loss_mask needs")
        for ids in packed(self.copy, texts, length):
            yield self._sample(ids, {})

    def _conversation(self, found: Conversation, where: str, others: Mapping[str, Any]) -> Sample:
        if not found.turns:
            return Sample()
        writer = self._template_writer(found, where)
        if writer is None and self.inputs.is_encoder_decoder and len(found.turns) > 1:
            asked = Conversation(found.turns[:-1], found.column)
            answer = self._ids(plain(Conversation(found.turns[-1:], found.column)), where, special=True)
            return self._sample(self._ids(plain(asked), where, special=True), others, answer)
        if self.use_loss_mask:
            ids, counts = answers_marked(found, writer, where, self.chat)
            cut = self._sample(ids, others)
            sample = Sample(cut.tokens, cut.decoder, cut.others, torch.tensor([counts]) != 0)
            return sample if self.limit is None else sample.cut(self.limit)
        if writer is None:
            return self._sample(self._ids(plain(found), where, special=True), others)
        return self._sample(self._ids(rendered(found, writer, where, self.chat), where, special=False), others)

    def _template_writer(self, found: Conversation, where: str) -> Any | None:
        """What has a chat template; None where there is none, and paragraphs do as well."""
        if self.chat.template is not None:
            return self.copy
        for writer in (self.copy, self.tokenizer):  # a processor may have the template that its tokenizer lacks
            if getattr(writer, "chat_template", None):
                return writer
        if self.chat_template is not None:
            log.warning("the tokenizer has no chat template: conversations are written in a plain one")
            self.copy.chat_template = self.chat_template
            return self.copy
        if found.is_pair:
            return None
        raise CalibrationError(
            f"{where} holds a conversation, and the tokenizer has no chat template: pass one with chat_template= "
            "(a file, or its text), or turn conversations to text with preprocessing_func"
        )

    def _ids(self, text: str, where: str, *, special: bool) -> list[int]:
        if not text.strip():
            return []
        with reading(f"{where}: the tokenizer cannot read the text"):
            return tokenized(self.copy, text, limit=self.limit, special=special)

    def _sample(self, ids: Sequence[int], others: Mapping[str, Any], answer: Sequence[int] = ()) -> Sample:
        """Tokens as what the model reads; where its encoder reads something else, as what its decoder does."""
        if not ids:
            return Sample()
        columns, mask = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64)
        if others and self.inputs.is_encoder_decoder:
            return Sample(decoder={"decoder_input_ids": columns, "decoder_attention_mask": mask}, others=others)
        return Sample({"input_ids": columns, "attention_mask": mask}, self._answer(answer), others)

    def _answer(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """What a decoder reads to say these tokens."""
        if not ids:
            return {}
        if self.inputs.takes("labels"):  # models shift them each in its own way
            return {"labels": torch.tensor([ids])}
        shifted = torch.tensor([[self.inputs.start_token, *ids[:-1]]])
        return {"decoder_input_ids": shifted, "decoder_attention_mask": torch.ones_like(shifted)}
