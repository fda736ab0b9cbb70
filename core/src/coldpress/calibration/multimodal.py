"""Rows with images or sound: the model's processor makes of them what its forward takes."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from coldpress.calibration.collate import Sample
from coldpress.errors import CalibrationError

MEDIA = ("images", "videos", "audio")  # columns that go to a processor by these names
_TOKENS = ("image_token_id", "video_token_id", "audio_token_id")  # attributes of processors: what stands for media


def text_tokenizer(tokenizer: Any) -> Any:
    """What makes tokens of a text: a processor's first argument may be the image."""
    return getattr(tokenizer, "tokenizer", None) or tokenizer


def is_processor(tokenizer: Any) -> bool:
    """Whether this is more than a tokenizer."""
    return getattr(tokenizer, "tokenizer", None) is not None


def process(
    row: Mapping[str, Any], processor: Any, *, limit: int | None, origin: str, takes: frozenset[str] = frozenset()
) -> Sample:
    """One sample of what a row holds.

    Args:
        row: `messages` or `text`, and some of `images`, `videos`, `audio`, `sampling_rate`.
        processor: of the model.
        limit: tokens at most; None keeps all.
        origin: what to call the data set in a message.
        takes: arguments of the model's forward; empty where they are not known.

    Raises:
        CalibrationError: the processor refuses the row, the model does not take what it makes of images or sound, or
            tokens that stand for them would be cut off.
    """
    media = {name: row[name] for name in MEDIA if row.get(name) is not None}
    if "audio" in media:
        media["audio"] = torch.as_tensor(media["audio"], dtype=torch.float32).numpy()
        media["sampling_rate"] = row.get("sampling_rate")
    try:
        found = dict(processor(text=[_text(row, processor)], **media, return_tensors="pt"))
    except Exception as error:  # a processor raises what it likes
        raise CalibrationError(
            f"{origin}: {type(processor).__name__} refuses a row with {', '.join(media)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    sequence = "input_ids" if "input_ids" in found else "decoder_input_ids"
    if sequence not in found and "labels" in found:  # of a model whose encoder hears, and whose decoder reads
        found[sequence] = found.pop("labels")
    if sequence not in found:
        raise CalibrationError(f"{origin}: {type(processor).__name__} gives {', '.join(found)}, and no tokens")
    made = found.keys() - {sequence, "attention_mask"}
    if takes and not made & takes:
        raise CalibrationError(f"{origin} holds {', '.join(media)}, and the model takes no {', '.join(sorted(made))}")
    kept = {name: torch.as_tensor(found[name]) for name in found if not takes or name in takes or name == sequence}
    return _cut(_sample(kept, sequence), processor, limit, origin)


def _text(row: Mapping[str, Any], processor: Any) -> str:
    """The text of a row: its conversation, where the processor has a template for such."""
    if row.get("messages") and (getattr(processor, "chat_template", None) or "text" not in row):
        return str(processor.apply_chat_template(list(row["messages"]), tokenize=False))
    return str(row["text"])


def _sample(found: dict[str, Tensor], sequence: str) -> Sample:
    """The tokens of the one sequence that a processor has made, and what goes with them."""
    ids = found.pop(sequence).flatten().tolist()
    mask = found.pop("attention_mask", None) if sequence == "input_ids" else None
    return Sample(ids, [1] * len(ids) if mask is None else mask.flatten().tolist(), found, sequence)


def _cut(sample: Sample, processor: Any, limit: int | None, origin: str) -> Sample:
    """The first tokens of a sample, unless some of the others stand for an image or sound."""
    if limit is None or len(sample.ids) <= limit:
        return sample
    media = {getattr(processor, name, None) for name in _TOKENS} - {None}
    if media.intersection(sample.ids[limit:]):
        raise CalibrationError(
            f"{origin}: a sample has {len(sample.ids)} tokens, and max_seq_length={limit} would cut off some that "
            "stand for an image or sound: raise it"
        )
    return sample.cut(limit)


def forward_names(model: Any) -> frozenset[str]:
    """The arguments that the forward of a model names."""
    return frozenset(inspect.signature(model.forward).parameters)
