"""Rows with images or sound: the model's processor makes of them what its forward takes."""

from collections.abc import Mapping
from typing import Any

import torch

from coldpress.calibration.chat import running_template
from coldpress.calibration.chat_options import PLAIN, ChatOptions
from coldpress.calibration.model_inputs import ModelInputs
from coldpress.calibration.sample import as_tensor
from coldpress.errors import CalibrationError
from coldpress.foreign import reading

MEDIA = ("images", "videos", "audio")  # columns that go to a processor by these names


def text_tokenizer(tokenizer: Any) -> Any:
    """What makes tokens of a text: a processor's first argument may be the image."""
    return getattr(tokenizer, "tokenizer", None) or tokenizer


def is_processor(tokenizer: Any) -> bool:
    """Whether this is more than a tokenizer."""
    return getattr(tokenizer, "tokenizer", None) is not None


def process(
    row: Mapping[str, Any], processor: Any, inputs: ModelInputs, where: str, chat: ChatOptions = PLAIN
) -> dict[str, Any]:
    """What a processor makes of a row for the model, with a batch dimension.

    Args:
        row: `messages` or `text`, and some of `images`, `videos`, `audio`, `sampling_rate`.
        processor: of the model.
        inputs: what the model takes.
        where: which row of which data set, for messages.
        chat: how conversations are written.

    Raises:
        CalibrationError: the processor refuses the row or makes no tokens of it, or the model takes nothing of what it
            makes of images or sound.
    """
    media = {name: row[name] for name in MEDIA if row.get(name) is not None}
    if "audio" in media:
        media["audio"] = torch.as_tensor(media["audio"], dtype=torch.float32).numpy()
        media["sampling_rate"] = row.get("sampling_rate")
    text = _text(row, processor, where, chat)
    with reading(f"{where}: {type(processor).__name__} refuses a row with {', '.join(media)}"):
        found = {name: as_tensor(value) for name, value in processor(text=[text], **media, return_tensors="pt").items()}
    if "input_ids" not in found and "decoder_input_ids" not in found and "labels" in found:
        found["decoder_input_ids"] = found.pop("labels")  # of a model whose encoder hears, and whose decoder reads
    if "input_ids" not in found and "decoder_input_ids" not in found:
        raise CalibrationError(f"{where}: {type(processor).__name__} gives {', '.join(found)}, and no tokens")
    made = found.keys() - {"input_ids", "decoder_input_ids", "attention_mask"}
    if not any(inputs.takes(name) for name in made):
        raise CalibrationError(
            f"{where} holds {', '.join(media)}, and {inputs.model} takes no {', '.join(sorted(made))}"
        )
    return {name: value for name, value in found.items() if inputs.takes(name) or name.endswith("_mask")}


def _text(row: Mapping[str, Any], processor: Any, where: str, chat: ChatOptions) -> str:
    """The text of a row: its conversation, where the processor has a template for such."""
    if row.get("messages") and (chat.template_of(processor) or "text" not in row):
        with running_template(chat.template_of(processor), where):
            return str(processor.apply_chat_template(list(row["messages"]), tokenize=False, **chat.arguments()))
    return str(row["text"])
