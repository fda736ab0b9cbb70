"""Data sets with images and with speech; the model's processor reads them."""

from collections.abc import Mapping
from typing import Any

from coldpress.plugin import HubDataset


def _image_and_captions(row: Mapping[str, Any]) -> dict[str, Any]:
    question = [{"type": "image"}, {"type": "text", "text": "What does this image show?"}]
    answer = [{"type": "text", "text": " ".join(row["caption"])}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": [row["image"]]}


def _speech_and_transcript(row: Mapping[str, Any]) -> dict[str, Any]:
    """A question about the speech for models that converse; the transcript for those that transcribe."""
    question = [{"type": "audio"}, {"type": "text", "text": "What did the person say?"}]
    audio = row["audio"]
    return {
        "messages": [{"role": "user", "content": question}],
        "text": " " + row["text"].capitalize(),
        "audio": audio["array"],
        "sampling_rate": audio["sampling_rate"],
    }


FLICKR30K = HubDataset(repo_id="lmms-lab/flickr30k", split="test", to_sample=_image_and_captions)
PEOPLES_SPEECH = HubDataset(
    repo_id="MLCommons/peoples_speech", config_name="test", split="test", to_sample=_speech_and_transcript
)
