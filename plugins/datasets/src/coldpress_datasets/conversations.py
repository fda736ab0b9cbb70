"""Data sets whose rows are conversations; the tokenizer's chat template writes them."""

from collections.abc import Mapping
from typing import Any

from coldpress.plugin import HubDataset

# For tokenizers of base models, which have no template: each turn under its role, ended as a text is.
_PLAIN = "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"


def _turns_by_role(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"messages": list(row["messages"])}


def _turns_by_sender(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"messages": list(row["conversations"])}  # of ShareGPT's form, which calibration understands


PERFECTBLEND = HubDataset(repo_id="mlabonne/open-perfectblend", to_sample=_turns_by_sender, chat_template=_PLAIN)
ULTRACHAT_200K = HubDataset(
    repo_id="HuggingFaceH4/ultrachat_200k",
    to_sample=_turns_by_role,
    split="train_sft",
    split_names={"train": "train_sft", "test": "test_sft"},
    chat_template=_PLAIN,
)
