"""Rows with anything in any place: samples or an error of ours, never one of another library."""

import json
import random

import pytest
import torch

from coldpress.arguments import DatasetArguments
from coldpress.calibration.dataset import load_batches
from coldpress.errors import ColdpressError
from coldpress.testing.models import tiny_llama, tiny_tokenizer

SEEDS = [
    {"text": "hello"},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]},
    {"conversations": [{"from": "human", "value": "a"}]},
    {"prompt": [{"role": "user", "content": "x"}], "completion": [{"role": "assistant", "content": "y"}]},
    {"prompt": "a", "response": "b"},
    {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [1, 2, 3]},
    {"input_ids": [[5, 6], [7, 8]], "loss_mask": [[0, 1], [1, 1]]},
    {"input_ids": [5, 6], "pixel_values": [[[0.5] * 4] * 4] * 3, "image_grid_thw": [[1, 2, 2]]},
    {"input_features": [[0.1] * 8] * 4, "decoder_input_ids": [1, 2]},
    {"inputs_embeds": [[0.1] * 8] * 3},
]
ATOMS = [None, True, 0, -1, 10**30, 1.5, float("nan"), "", "x", "é", [], {}, [[]], [None], ["a"], [1, 2], [[1], [2, 3]]]
ATOMS += [{"a": 1}, [{"role": 1}], [{"role": "user", "content": None}], [{"from": 1, "value": 2}], [[{}]], [[[[1]]]]]
NAMES = ["text", "messages", "input_ids", "attention_mask", "labels", "pixel_values", "loss_mask", "content", "images"]


def mutant(value, draw):
    """The value with something else somewhere."""
    if draw.random() < 0.25 or not value or not isinstance(value, (dict, list)):
        return draw.choice(ATOMS)
    if isinstance(value, dict):
        name = draw.choice([*value, draw.choice(NAMES)])
        return {**value, name: mutant(value.get(name), draw)}
    place = draw.randrange(len(value))
    return [*value[:place], mutant(value[place], draw), *value[place + draw.choice([0, 1]) :]]


def tensors(value):
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return value


@pytest.fixture(scope="module")
def models():
    return [tiny_llama(hidden=64), None]


@pytest.mark.parametrize("seed", range(4))
def test_rows_with_anything_in_them_are_samples_or_an_error_of_ours(models, tmp_path, seed, caplog):
    caplog.set_level("ERROR")
    draw, tokenizer, path = random.Random(seed), tiny_tokenizer(), tmp_path / "rows.jsonl"
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{% endfor %}"
    outcomes = set()

    for _ in range(100):
        rows = [mutant(draw.choice(SEEDS), draw), draw.choice(SEEDS)]
        path.write_text("\n".join(map(json.dumps, rows)))
        as_tensors = [{k: tensors(v) for k, v in row.items()} if isinstance(row, dict) else row for row in rows]
        arguments = DatasetArguments(
            dataset=draw.choice([rows, as_tensors, iter(rows), str(path)]),
            max_seq_length=draw.choice([None, 1, 8]),
            batch_size=draw.choice([None, 1, 2]),
            data_collator=draw.choice(["truncation", "padding"]),
            concatenate_data=draw.choice([None, None, True]),
            use_loss_mask=draw.random() < 0.2,
        )
        try:
            load_batches(arguments, tokenizer, model=draw.choice(models))
            outcomes.add("samples")
        except ColdpressError:
            outcomes.add("refused")

    assert outcomes == {"samples", "refused"}
