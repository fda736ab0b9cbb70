"""Samples to batches: near lengths together, nothing that does not fit, what is cut and padded is told."""

import inspect

import pytest
import torch
from torch import nn

from coldpress.arguments import DatasetArguments
from coldpress.calibration.batch import count_tokens
from coldpress.calibration.dataset import load_calibration
from coldpress.errors import CalibrationError
from coldpress.testing.models import tiny_tokenizer

LENGTHS = [3, 50, 7, 52, 4, 49, 8, 51]
ROWS = [{"input_ids": [5] * length} for length in LENGTHS]
GENERATION = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)


class Reads(nn.Module):
    """A module whose forward has arguments of these names."""

    def __init__(self, *names):
        super().__init__()
        self.forward = lambda **found: found
        kind = inspect.Parameter.KEYWORD_ONLY
        self.forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])


def load(rows, model=None, tokenizer=None, **arguments):
    arguments = DatasetArguments(dataset=rows, **{"shuffle_calibration_samples": False, **arguments})
    return load_calibration(arguments, tokenizer, model=model)


def shapes(data, name="input_ids"):
    return [tuple(batch[name].shape) for batch in data.batches if name in batch]


@pytest.mark.parametrize(("collator", "padding", "cut"), [("truncation", 0, 16), ("padding", 16, 0)])
def test_samples_of_near_length_go_together_so_little_is_cut_or_padded(collator, padding, cut):
    data = load(ROWS, batch_size=4, data_collator=collator)

    assert [shape[0] for shape in shapes(data)] == [4, 4]
    assert data.summary.tokens + data.summary.cut == sum(LENGTHS)
    assert (data.summary.padding, data.summary.cut) == (padding, cut)


def test_samples_of_one_length_stay_in_their_order():
    rows = [{"input_ids": [3 + i] * 4} for i in range(7)]

    data = load(rows, batch_size=3)

    assert [batch["input_ids"][:, 0].tolist() for batch in data.batches] == [[3, 4, 5], [6, 7, 8], [9]]


def test_what_is_cut_off_is_told():
    assert "4 tokens cut off to join samples" in load([[5] * 3, [5] * 7], batch_size=2).summary.line()


def test_images_of_a_batch_are_joined_with_and_without_a_batch_dimension():
    model = Reads("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
    plain = [{"input_ids": [3, 4, 5], "pixel_values": torch.zeros(3, 8, 8).tolist()} for _ in range(2)]
    batched = [{"input_ids": [[3, 4, 5]], "pixel_values": torch.zeros(1, 3, 8, 8)} for _ in range(2)]
    patches = [
        {"input_ids": [3, 4, 5], "pixel_values": torch.zeros(16, 12), "image_grid_thw": [[1, 4, 4]]} for _ in range(2)
    ]

    for rows, joined in ((plain, (2, 3, 8, 8)), (batched, (2, 3, 8, 8)), (patches, (32, 12))):
        assert shapes(load(rows, model, batch_size=2), "pixel_values") == [joined]
        assert len(load(rows, model).batches) == 2
    assert shapes(load(patches, model, batch_size=2), "image_grid_thw") == [(2, 3)]


def test_samples_with_images_are_not_cut_and_that_is_told(caplog):
    model = Reads("input_ids", "attention_mask", "pixel_values")
    rows = [{"input_ids": [[3] * 30], "pixel_values": torch.zeros(1, 3, 8, 8)}]

    assert shapes(load(rows, model, max_seq_length=8)) == [(1, 30)]
    assert "not cut, since tokens may stand for images" in caplog.text


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"inputs_embeds": torch.zeros(5, 16)}, (1, 5, 16)),
        ({"inputs_embeds": torch.zeros(1, 5, 16)}, (1, 5, 16)),
        ({"pixel_values": torch.zeros(3, 8, 8)}, (1, 3, 8, 8)),
        ({"input_features": torch.zeros(80, 30)}, (1, 80, 30)),
        ({"input_values": [0.5] * 400}, (1, 400)),
        ({"x": [1.0, 2.0]}, (1, 2)),
    ],
)
def test_models_without_token_ids_are_called_with_what_they_take(row, shape):
    (name,) = row

    assert shapes(load([row] * 2, Reads(name), batch_size=1), name) == [shape] * 2


def test_a_model_without_a_mask_is_never_given_padding():
    assert shapes(load(ROWS, Reads("input_ids"), batch_size=4)) == [(4, 3), (4, 49)]
    with pytest.raises(CalibrationError, match="takes no attention_mask, so samples cannot be padded"):
        load(ROWS, Reads("input_ids"), batch_size=4, data_collator="padding")
    with pytest.raises(CalibrationError, match="pad_to_max_length is not possible"):
        load(ROWS, Reads("input_ids"), pad_to_max_length=True, max_seq_length=60)


def test_columns_for_each_token_are_cut_and_padded_with_it():
    model = Reads("input_ids", "attention_mask", "token_type_ids", "labels")
    rows = [{"input_ids": [3] * n, "token_type_ids": [1] * n, "labels": [4] * n} for n in (9, 5)]

    (batch,) = load(rows, model, batch_size=2, data_collator="padding", max_seq_length=8).batches

    assert batch["token_type_ids"].sum(1).tolist() == batch["attention_mask"].sum(1).tolist() == [8, 5]
    assert batch["labels"][1].tolist() == [4] * 5 + [-100] * 3


def test_a_label_of_the_whole_row_is_not_given_to_the_model():
    (batch,) = load([{"input_ids": [3, 4], "labels": 1}], Reads("input_ids", "attention_mask", "labels")).batches

    assert set(batch) == {"input_ids", "attention_mask"}


def test_a_function_is_handed_rows_whole_and_gives_what_the_model_takes(caplog):
    seen = []

    def collator(rows):
        seen.extend(rows)
        return {"input_ids": torch.tensor([row["input_ids"] for row in rows]), "url": [row["url"] for row in rows]}

    rows = [{"input_ids": [3, 4, 5], "url": "a", "extra": {"b": 1}}]
    data = load(rows, Reads("input_ids"), data_collator=collator, max_seq_length=2)

    assert seen == [{"input_ids": [3, 4], "url": "a", "extra": {"b": 1}}]
    assert set(data.batches[0]) == {"input_ids"}
    assert "url" in caplog.text


def test_only_tokens_that_have_a_loss_count():
    rows = [
        {"input_ids": [3, 4, 5, 6], "loss_mask": [0, 0, 1, 1]},
        {"input_ids": [3, 4, 5], "assistant_masks": [1, 0, 0]},
        {"input_ids": [3, 4], "labels": [-100, 4]},
        {"input_ids": [[3, 4, 5]], "attention_mask": [[1, 1, 0]], "loss_mask": [[0, 1, 1]]},
    ]

    data = load(rows, Reads("input_ids", "attention_mask"), use_loss_mask=True, batch_size=1)

    assert [count_tokens(batch) for batch in data.batches] == [2, 1, 1, 1]
    assert all(set(batch) == {"input_ids", "attention_mask"} for batch in data.batches)
    padded = load(rows, use_loss_mask=True, batch_size=4, data_collator="padding")
    assert padded.summary.tokens == 5
    assert load(rows, batch_size=1).summary.tokens == 4 + 3 + 2 + 2


def test_batches_and_functions_may_say_which_tokens_count():
    batch = {"input_ids": torch.tensor([[3, 4, 5]]), "loss_mask": torch.tensor([[0, 1, 1]])}

    ready = load([batch], Reads("input_ids"), use_loss_mask=True)
    made = load([{"input_ids": [9], "loss_mask": [1]}], use_loss_mask=True, data_collator=lambda rows: batch)

    assert ready.summary.tokens == made.summary.tokens == 2


def test_answers_that_a_chat_template_marks_count_alone():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = GENERATION
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}]

    data = load([{"messages": turns}], tokenizer=tokenizer, use_loss_mask=True)

    assert data.summary.tokens == len("because")
    assert tokenizer.decode(data.batches[0]["input_ids"][0]) == "why?because"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"input_ids": [3, 4]}, "row 0 has no loss mask: use_loss_mask needs a column loss_mask"),
        ({"input_ids": [3, 4], "loss_mask": [1]}, "row 0 has 2 tokens and a loss mask of 1"),
        ({"text": "a"}, "row 0 is text without a loss mask"),
        ({"messages": [{"role": "user", "content": "a"}]}, "row 0: use_loss_mask needs a chat template that marks"),
    ],
)
def test_a_loss_mask_that_is_missing_is_told(row, says):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"

    with pytest.raises(CalibrationError, match=says):
        load([row], tokenizer=tokenizer, use_loss_mask=True)


def test_tokens_that_the_model_does_not_have_are_refused_with_their_row():
    model = Reads("input_ids")
    model.get_input_embeddings = lambda: nn.Embedding(10, 2)

    assert load([[9]], model).summary.tokens == 1
    with pytest.raises(CalibrationError, match=r"row 1 has the token 10, and Reads has 10 of them"):
        load([[9], [10]], model)


@pytest.mark.parametrize(
    ("rows", "arguments", "says"),
    [
        ([[5] * 9] * 3, {"num_calibration_samples": 4}, "the data set (list) gives 3 samples, and 4 were asked for"),
        ([[5] * 9] * 3, {"max_seq_length": 30}, "its samples have 9 tokens in the mean, where max_seq_length=30"),
    ],
)
def test_less_than_was_asked_for_is_a_warning(rows, arguments, says, caplog):
    load(rows, **arguments)

    assert says in caplog.text


def test_what_is_calibrated_on_is_one_line(caplog):
    caplog.set_level("INFO", logger="coldpress.calibration")
    rows = [{"input_ids": [5] * n} for n in (4, 6)] + [{"input_ids": []}]

    data = load(rows, batch_size=2, data_collator="padding", num_calibration_samples=2)

    line = "calibration: the data set (list), 2 samples, 10 tokens (the longest has 6), 2 of padding"
    assert data.summary.line() == line
    assert line in caplog.text
    assert data.summary.to_dict()["asked_samples"] == 2
