"""Calibration data of a user's own, in proportions."""

from collections.abc import Iterator
from typing import Any

from coldpress import oneshot


def rows() -> Iterator[dict[str, Any]]:
    yield {"messages": [{"role": "user", "content": "hello"}]}


def plain(row: dict[str, Any]) -> dict[str, Any]:
    return {"text": row["body"]}


oneshot("m", "r.yaml", dataset=rows(), chat_template_kwargs={"enable_thinking": False})
oneshot("m", "r.yaml", dataset={"ultrachat_200k": 0.7, "my.jsonl": 0.3}, shuffle_calibration_samples=False)
oneshot("m", "r.yaml", dataset="my.jsonl", column_map={"body": "text"}, preprocessing_func=plain)
oneshot("m", "r.yaml", dataset="my.jsonl", column_map="body=text", text_columm="body")  # wrong
oneshot("m", "r.yaml", dataset="my.jsonl", preprocessing_func="plain")  # wrong
oneshot("m", "r.yaml", dataset="my.jsonl", streaming="no")  # wrong
