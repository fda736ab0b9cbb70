"""From whatever names a data set to batches of tokens."""

import inspect
import json
import logging

import pytest
import torch
from torch.utils.data import DataLoader

from coldpress import registry
from coldpress.arguments import DatasetArguments
from coldpress.calibration import short
from coldpress.calibration.dataset import load_batches
from coldpress.errors import ArgumentError, CalibrationError, ModelError
from coldpress.testing.models import tiny_tokenizer

TEXTS = [f"sample {i} " + "x" * i for i in range(12)]


class Reads(torch.nn.Module):
    """A module whose forward has arguments of these names."""

    def __init__(self, *names):
        super().__init__()
        kind = inspect.Parameter.KEYWORD_ONLY
        self.forward = lambda **found: found
        self.forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def offline(monkeypatch):
    """A machine without network."""
    monkeypatch.setattr("coldpress.arguments.hub.hub_is_reachable", lambda: False)


def _batches(tokenizer, seed=0, *, apart=False, **arguments):
    return load_batches(DatasetArguments(**arguments), tokenizer, seed, apart=apart)


def _words(tokenizer, batches):
    return [
        tokenizer.decode(ids[mask.bool()])
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_a_list_of_texts_gives_its_tokens_in_order_unless_shuffled(tokenizer):
    batches = _batches(tokenizer, dataset=TEXTS, shuffle_calibration_samples=False)

    assert _words(tokenizer, batches) == TEXTS
    assert all(batch["input_ids"].dtype == torch.int64 for batch in batches)
    assert all(batch["input_ids"].shape == batch["attention_mask"].shape for batch in batches)


def test_the_seed_alone_decides_the_order(tokenizer):
    first, again, other = (_words(tokenizer, _batches(tokenizer, seed, dataset=TEXTS)) for seed in (1, 1, 2))

    assert first == again
    assert first != other
    assert sorted(first) == sorted(other) == sorted(TEXTS)


def test_the_first_samples_of_the_shuffle_are_taken(tokenizer):
    whole = _words(tokenizer, _batches(tokenizer, dataset=TEXTS))

    assert _words(tokenizer, _batches(tokenizer, dataset=TEXTS, num_calibration_samples=5)) == whole[:5]


def test_fewer_samples_than_asked_for_are_logged_and_used(tokenizer, caplog):
    with caplog.at_level(logging.INFO, logger="coldpress.calibration"):
        batches = _batches(tokenizer, dataset=TEXTS, num_calibration_samples=100)

    assert len(batches) == len(TEXTS)
    assert "gives 12 samples, and 100 were asked for" in caplog.text


def test_empty_rows_are_replaced_by_later_ones(tokenizer):
    rows = ["", "  ", None, *TEXTS]
    batches = _batches(tokenizer, dataset=[{"text": row} for row in rows], num_calibration_samples=12)

    assert sorted(_words(tokenizer, batches)) == sorted(TEXTS)


def test_samples_are_cut_to_max_seq_length(tokenizer):
    batches = _batches(tokenizer, dataset=["abcdefgh"], max_seq_length=5)

    assert _words(tokenizer, batches) == ["abcde"]


def test_samples_are_cut_where_the_model_ends(tokenizer, caplog):
    tokenizer.model_max_length = 4

    assert _words(tokenizer, _batches(tokenizer, dataset=["abcdefgh"])) == ["abcd"]
    assert _words(tokenizer, _batches(tokenizer, dataset=["abcdefgh"], max_seq_length=6)) == ["abcd"]
    assert "longer than the model's 4" in caplog.text


def test_neighbours_of_one_length_are_a_batch_and_nothing_is_cut_or_padded():
    rows = [{"input_ids": [1] * length} for length in (3, 3, 3, 5, 3)]
    found = [
        [
            tuple(batch["input_ids"].shape)
            for batch in _batches(None, dataset=rows, shuffle_calibration_samples=False, **how)
        ]
        for how in ({}, {"apart": True}, {"apart": True, "batch_size": 5})
    ]

    assert found == [[(3, 3), (1, 5), (1, 3)], [(1, 3), (1, 3), (1, 3), (1, 5), (1, 3)], [(5, 3)]]


def test_neighbours_are_a_batch_up_to_a_number_of_tokens():
    rows = [{"input_ids": [1] * length} for length in [600] * 8 + [5000] * 2]

    found = _batches(None, dataset=rows, shuffle_calibration_samples=False)

    assert [tuple(batch["input_ids"].shape) for batch in found] == [(3, 600), (3, 600), (2, 600), (1, 5000), (1, 5000)]


def test_truncation_cuts_a_batch_to_its_shortest_sample(tokenizer):
    batches = _batches(tokenizer, dataset=["abc", "defgh"], batch_size=2, shuffle_calibration_samples=False)

    assert _words(tokenizer, batches) == ["abc", "def"]


def test_padding_keeps_every_token_and_masks_the_rest(tokenizer):
    (batch,) = _batches(
        tokenizer, dataset=["abc", "defgh"], batch_size=2, data_collator="padding", shuffle_calibration_samples=False
    )

    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["input_ids"][0, 3:].tolist() == [tokenizer.pad_token_id] * 2
    assert _words(tokenizer, [batch]) == ["abc", "defgh"]


def test_padding_to_max_length_gives_every_sample_that_length(tokenizer):
    batches = _batches(tokenizer, dataset=TEXTS, pad_to_max_length=True, max_seq_length=40, batch_size=5)

    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(5, 40), (5, 40), (2, 40)]
    assert sorted(_words(tokenizer, batches)) == sorted(TEXTS)


def test_a_collator_may_be_a_function(tokenizer):
    def collator(rows):
        return {"input_ids": torch.tensor([row["input_ids"][:2] for row in rows])}

    batches = _batches(tokenizer, dataset=TEXTS, batch_size=12, data_collator=collator)

    assert [tuple(batch["attention_mask"].shape) for batch in batches] == [(12, 2)]


def test_concatenated_blocks_hold_every_token_in_order(tokenizer):
    batches = _batches(
        tokenizer, dataset=TEXTS, concatenate_data=True, max_seq_length=16, shuffle_calibration_samples=False
    )

    joined = "".join(TEXTS)
    assert {batch["input_ids"].shape[1] for batch in batches} == {16}
    assert "".join(_words(tokenizer, batches)) == joined[: len(joined) // 16 * 16]


def test_concatenation_without_a_length_is_told(tokenizer):
    tokenizer.model_max_length = 10**30

    with pytest.raises(CalibrationError, match="concatenate_data needs max_seq_length"):
        _batches(tokenizer, dataset=TEXTS, concatenate_data=True)


def test_rows_that_are_tokens_already_need_no_tokenizer():
    rows = [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 0]}, {"input_ids": torch.tensor([8, 9, 10])}]

    (batch,) = _batches(None, dataset=rows, batch_size=2, shuffle_calibration_samples=False)

    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 10]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_conversations_go_through_the_chat_template(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"role": "bot", "content": "yo"}]}]

    assert _words(tokenizer, _batches(tokenizer, dataset=rows)) == ["<user>hi<bot>yo"]


def test_conversations_without_a_chat_template_are_told(tokenizer):
    with pytest.raises(CalibrationError, match="has no chat template"):
        _batches(tokenizer, dataset=[{"messages": [{"role": "user", "content": "hi"}]}])


def test_preprocessing_makes_the_column_that_is_read(tokenizer):
    rows = [{"question": "1+1", "answer": "2"}]

    batches = _batches(
        tokenizer, dataset=rows, preprocessing_func=lambda row: {"text": f"{row['question']}={row['answer']}"}
    )

    assert _words(tokenizer, batches) == ["1+1=2"]


def test_a_wrong_column_lists_the_columns_and_suggests_one(tokenizer):
    with pytest.raises(CalibrationError, match=r"no column 'text'; did you mean 'texts'.*texts, label") as caught:
        _batches(tokenizer, dataset=[{"texts": "a", "label": 1}])

    assert "text_column=" in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        ([], "is empty"),
        ({}, "it has no splits"),
        ([{"text": ""}, {"text": " "}], "none of its 2 rows holds a token"),
        ([{"text": 3}], "holds int, not text"),
        ([3], "row 0 is a int: an item must be text, a dict"),
        (3, "got int"),
        ({"a": ["x"], "b": ["y"]}, "has the splits a, b"),
        ([{"input_ids": [1, 2], "attention_mask": [1]}], "a mask of 1"),
    ],
)
def test_data_that_cannot_be_used_say_why(tokenizer, dataset, says):
    with pytest.raises(CalibrationError, match=says):
        _batches(tokenizer, dataset=dataset)


def test_text_without_a_tokenizer_is_told():
    with pytest.raises(ModelError, match="needs a tokenizer"):
        _batches(None, dataset=TEXTS)


def test_a_misspelt_collator_is_told():
    with pytest.raises(ArgumentError, match="did you mean 'padding'"):
        DatasetArguments(data_collator="pading")


def test_a_data_loader_is_taken_as_it_is():
    rows = [{"input_ids": torch.arange(4), "extra": i} for i in range(3)]
    loader = DataLoader(rows, batch_size=2)

    batches = _batches(None, dataset=loader, num_calibration_samples=1)

    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 4), (1, 4)]
    assert batches[0]["extra"].tolist() == [0, 1]
    assert all(batch["attention_mask"].all() for batch in batches)


def test_a_list_of_batches_is_taken_as_it_is():
    batches = [{"input_ids": torch.arange(6).view(2, 3)}]

    (found,) = _batches(None, dataset=batches)

    assert torch.equal(found["input_ids"], batches[0]["input_ids"])


def test_a_loader_that_gives_something_else_is_told():
    with pytest.raises(CalibrationError, match="must be a dict with input_ids"):
        _batches(None, dataset=DataLoader([torch.arange(3)]))
    with pytest.raises(CalibrationError, match="holds labels"):
        _batches(None, dataset=DataLoader([{"labels": torch.arange(3)}]))


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "txt", "parquet"])
def test_a_file_of_every_kind_gives_its_rows(tmp_path, tokenizer, suffix):
    datasets = pytest.importorskip("datasets")
    path = tmp_path / f"data.{suffix}"
    dataset = datasets.Dataset.from_dict({"text": TEXTS})
    if suffix == "txt":
        path.write_text("\n".join(TEXTS))
    elif suffix == "json":
        path.write_text(json.dumps([{"text": text} for text in TEXTS]))
    else:
        {"jsonl": dataset.to_json, "csv": dataset.to_csv, "parquet": dataset.to_parquet}[suffix](str(path))

    batches = _batches(tokenizer, dataset=path, shuffle_calibration_samples=False, concatenate_data=False)

    assert _words(tokenizer, batches) == TEXTS


def test_a_folder_of_files_and_a_saved_data_set_give_their_rows(tmp_path, tokenizer):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"text": TEXTS})
    (tmp_path / "files").mkdir()
    dataset.to_json(str(tmp_path / "files" / "a.jsonl"))
    datasets.DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(str(tmp_path / "saved"))

    plain, saved, test = (
        _words(tokenizer, _batches(tokenizer, dataset=tmp_path / name, splits=splits))
        for name, splits in (("files", None), ("saved", None), ("saved", {"calibration": "test"}))
    )

    assert sorted(plain) == sorted(saved) == sorted(TEXTS)
    assert test == TEXTS[:1]


def test_a_part_of_a_split_may_be_named(tmp_path, tokenizer):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))

    batches = _batches(tokenizer, dataset_path=path, splits="train[:25%]")

    assert sorted(_words(tokenizer, batches)) == sorted(TEXTS[:3])


def test_a_data_set_object_is_streamed_or_indexed_alike(tokenizer):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"text": TEXTS})

    indexed, streamed = (
        _words(tokenizer, _batches(tokenizer, dataset=form, shuffle_calibration_samples=False))
        for form in (dataset, dataset.to_iterable_dataset())
    )

    assert indexed == streamed == TEXTS


def test_a_split_that_is_not_there_is_told(tokenizer):
    datasets = pytest.importorskip("datasets")
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})})

    with pytest.raises(CalibrationError, match="no split 'trian'; did you mean 'train'"):
        _batches(tokenizer, dataset=splits, splits="trian")


def test_a_broken_file_is_named(tmp_path, tokenizer):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a"}\n{broken\n')

    with pytest.raises(CalibrationError, match=r"data\.jsonl.*cannot be read"):
        _batches(tokenizer, dataset=path)


def test_a_file_that_is_not_there_names_its_neighbour(tmp_path, tokenizer):
    (tmp_path / "data.jsonl").write_text("{}")

    with pytest.raises(CalibrationError, match="no such file or folder; did you mean 'data.jsonl'"):
        _batches(tokenizer, dataset=tmp_path / "dta.jsonl")


def test_an_unknown_name_suggests_one_that_is_installed(tokenizer, offline, monkeypatch):
    plugin = next(one for one in registry.available("datasets") if one.name == "coldpress/short")
    monkeypatch.setattr(registry, "available", lambda kind: [plugin])

    with pytest.raises(CalibrationError, match="did you mean 'coldpress/short'"):
        _batches(tokenizer, dataset="coldpress/shrt")


def test_a_data_set_of_a_plugin_is_found_by_name_and_split(tokenizer, monkeypatch):
    plugin = next(one for one in registry.available("datasets") if one.name == "coldpress/short")
    monkeypatch.setattr(registry, "available", lambda kind: [plugin])
    monkeypatch.setattr(registry, "find", lambda kind, name: short.load)

    batches = _batches(
        tokenizer, dataset="coldpress/short", splits="held_out", num_calibration_samples=3, max_seq_length=64
    )

    held_out = [row["text"] for row in short.load("held_out")]
    assert [batch["input_ids"].shape for batch in batches] == [(3, 64)]
    assert all(any(text.startswith(word) for text in held_out) for word in _words(tokenizer, batches))


def test_data_that_nobody_names_are_asked_for_and_the_embedded_text_is_proposed(tokenizer):
    with pytest.raises(CalibrationError, match="pass dataset=.*coldpress/short"):
        _batches(tokenizer, num_calibration_samples=2, max_seq_length=8)


def test_calibration_leaves_the_tokenizer_as_it_was(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "before")

    _batches(tokenizer, dataset=TEXTS, max_seq_length=4, pad_to_max_length=True, batch_size=3, data_collator="padding")

    tokenizer.save_pretrained(tmp_path / "after")
    before, after = (
        {file.name: file.read_text() for file in (tmp_path / name).iterdir()} for name in ("before", "after")
    )
    assert before == after
    assert tokenizer.backend_tokenizer.truncation is None
    assert tokenizer.backend_tokenizer.padding is None


def test_a_tokenizer_with_truncation_of_its_own_keeps_it(tokenizer):
    tokenizer.backend_tokenizer.enable_truncation(7)

    assert len(_batches(tokenizer, dataset=["abcdefghijklm"], max_seq_length=10)[0]["input_ids"][0]) == 10
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 7


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_conversations_in_sharegpts_form_are_understood(tokenizer, column):
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]

    assert _words(tokenizer, _batches(tokenizer, dataset=[{column: turns}])) == ["system:s\nuser:q\nassistant:a\n"]


def test_a_template_that_refuses_a_conversation_is_told(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"

    with pytest.raises(
        CalibrationError, match="row 0: the chat template refuses the conversation: .*System role not supported"
    ):
        _batches(tokenizer, dataset=[{"messages": [{"role": "system", "content": "s"}]}])


def test_columns_that_the_model_takes_go_along(tokenizer):
    rows = [{"input_ids": [1, 2, 3], "token_type_ids": [0, 1, 1], "id": i} for i in range(2)]

    (batch,) = load_batches(
        DatasetArguments(dataset=rows, batch_size=2, max_seq_length=2),
        tokenizer,
        model=Reads("input_ids", "attention_mask", "token_type_ids", "labels"),
    )

    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (2, 2),
        "attention_mask": (2, 2),
        "token_type_ids": (2, 2),
    }


def test_a_collator_that_is_a_function_is_handed_the_row_as_it_is():
    row = {"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1, 1]], "pixel_values": [[[0.5]]], "name": "x"}
    seen = []

    def collator(rows):
        seen.extend(rows)
        return {name: torch.tensor(value) for name, value in rows[0].items() if name != "name"}

    (batch,) = _batches(None, dataset=[row], data_collator=collator)

    assert seen == [row]
    assert batch["pixel_values"].shape == (1, 1, 1)


def test_rows_of_several_samples_are_as_many_samples():
    rows = [{"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1], [1, 0]]}, {"input_ids": [[5], [6, 7]]}]

    found = _batches(None, dataset=rows, batch_size=1, shuffle_calibration_samples=False)

    assert [batch["input_ids"].tolist() for batch in found] == [[[1, 2]], [[3, 4]], [[5]], [[6, 7]]]
    assert found[1]["attention_mask"].tolist() == [[1, 0]]


def test_texts_are_read_by_the_tokenizer_of_a_processor(tokenizer):
    class Processor:
        tokenizer = tiny_tokenizer()
        chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"

        def apply_chat_template(self, messages, tokenize):
            return "!" + "".join(turn["content"] for turn in messages)

    found = _batches(Processor(), dataset=[{"text": "abc"}, {"messages": [{"role": "user", "content": "de"}]}])

    assert sorted(_words(tokenizer, found)) == ["!de", "abc"]


def test_samples_of_different_kinds_are_never_in_one_batch():
    widths = (2, 3, 2, 0)
    rows = [{"input_ids": [1]} | ({"pixel_values": [[[0.0] * width]]} if width else {}) for width in widths]
    model = Reads("input_ids", "attention_mask", "pixel_values")

    found = load_batches(
        DatasetArguments(dataset=rows, batch_size=4, shuffle_calibration_samples=False), None, model=model
    )

    assert [tuple(batch["pixel_values"].shape) for batch in found if "pixel_values" in batch] == [
        (2, 1, 1, 2),
        (1, 1, 1, 3),
    ]
    with pytest.raises(CalibrationError, match="concatenate_data joins texts"):
        load_batches(DatasetArguments(dataset=rows, concatenate_data=True, max_seq_length=1), None, model=model)


def test_a_reader_that_breaks_off_is_told(tokenizer):
    def rows():
        yield {"text": "a"}
        raise OSError("connection lost")

    with pytest.raises(CalibrationError, match="cannot be read: OSError: connection lost"):
        _batches(tokenizer, dataset=rows())


def test_tokens_may_be_all_that_the_tokenizer_gives(tokenizer):
    rows = [
        {"input_ids": dict(tokenizer("abc"))}
    ]  # apply_chat_template(tokenize=True) of transformers 5 is such a dict

    assert _words(tokenizer, _batches(tokenizer, dataset=rows)) == ["abc"]
