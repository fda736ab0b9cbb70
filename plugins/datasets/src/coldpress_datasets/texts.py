"""Data sets whose rows are texts, or questions and answers that are written as one."""

from collections.abc import Mapping
from typing import Any

from coldpress.plugin import HubDataset

# The prompts of Stanford Alpaca, and that of Evol-Instruct for programs: models were trained on exactly these words.
_ALPACA = (
    "Below is an instruction that describes {what}{with_input}. Write a {answer} that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n"
)
_WITH_INPUT = ", paired with an input that provides further context"


def _text(row: Mapping[str, Any]) -> dict[str, str]:
    return {"text": row["text"]}


def _question_and_answer(row: Mapping[str, Any]) -> dict[str, str]:
    return {"text": f"Question: {row['question']}\nAnswer: {row['answer']}"}


def _article_and_summary(row: Mapping[str, Any]) -> dict[str, str]:
    return {"text": f"Article:\n{row['article']}\n\n### Summarization:\n{row['highlights']}\n"}


def _instruction(row: Mapping[str, Any]) -> dict[str, str]:
    given = row.get("input")
    prompt = _ALPACA.format(
        with_input=_WITH_INPUT if given else "",
        what="a task",
        answer="response",
        instruction=row["instruction"],
        input=f"### Input:\n{given}\n\n" if given else "",
    )
    return {"text": prompt + row["output"]}


def _program(row: Mapping[str, Any]) -> dict[str, str]:
    prompt = _ALPACA.format(
        with_input="", what="a programming task", answer="program", instruction=row["instruction"], input=""
    )
    return {"text": prompt + row["output"]}


C4 = HubDataset(repo_id="allenai/c4", config_name="en", to_sample=_text)
WIKITEXT = HubDataset(repo_id="Salesforce/wikitext", config_name="wikitext-2-raw-v1", to_sample=_text)
GSM8K = HubDataset(repo_id="openai/gsm8k", config_name="main", to_sample=_question_and_answer)
CNN_DAILYMAIL = HubDataset(repo_id="abisee/cnn_dailymail", config_name="3.0.0", to_sample=_article_and_summary)
OPEN_PLATYPUS = HubDataset(repo_id="garage-bAInd/Open-Platypus", to_sample=_instruction)
EVOLCODEALPACA = HubDataset(repo_id="theblackcat102/evol-codealpaca-v1", to_sample=_program)
