"""Data sets in memory in the forms that people have, and conversations in theirs: understood, or refused by name."""

import itertools

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset
from transformers import BatchEncoding

from coldpress.arguments import DatasetArguments
from coldpress.calibration.dataset import load_batches
from coldpress.errors import CalibrationError
from coldpress.testing.models import tiny_tokenizer

IDS = torch.arange(3, 27).view(6, 4)
TEXTS = ["one", "two", "three"]
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


class Rows(Dataset):
    """A torch data set that has a length and items, and cannot be iterated."""

    __iter__ = None

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([{"text": text} for text in TEXTS])


def sequences(dataset, tokenizer=None, **arguments):
    """The tokens of every sample, without padding."""
    arguments = DatasetArguments(dataset=dataset, shuffle_calibration_samples=False, **arguments)
    return [
        ids[mask.bool()].tolist()
        for batch in load_batches(arguments, tokenizer)
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def words(dataset, tokenizer=None, **arguments):
    tokenizer = tokenizer or tiny_tokenizer()
    return [tokenizer.decode(ids) for ids in sequences(dataset, tokenizer, **arguments)]


@pytest.mark.parametrize(
    "dataset",
    [
        IDS,
        IDS.numpy(),
        IDS.tolist(),
        [tuple(row.tolist()) for row in IDS],
        list(IDS),
        [row[None] for row in IDS],
        TensorDataset(IDS),
        Rows([{"input_ids": row} for row in IDS]),
        {"input_ids": IDS.tolist(), "attention_mask": torch.ones_like(IDS).tolist()},
        {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)},
        BatchEncoding({"input_ids": IDS.tolist()}),
        {"train": IDS.tolist(), "test": [[1]]},
        ({"input_ids": row} for row in IDS),
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_token_ids_in_every_form_are_the_same_samples(dataset):
    assert sequences(dataset) == IDS.tolist()


def test_texts_in_every_form_are_the_same_samples():
    pandas = pytest.importorskip("pandas")
    arrow = pytest.importorskip("pyarrow")
    table = {"text": TEXTS, "n": [1, 2, 3]}
    forms = [
        TEXTS,
        tuple(TEXTS),
        table,
        pandas.DataFrame(table, index=[5, 6, 7]),
        pandas.DataFrame(table)["text"],
        arrow.table(table),
        Stream(),
        Rows(TEXTS),
        iter(TEXTS),
        (text for text in TEXTS),
        map(str, TEXTS),
    ]

    for form in forms:
        assert words(form) == TEXTS, type(form)


def test_of_an_endless_stream_no_more_is_read_than_is_used():
    numbers = itertools.count()

    assert words((f"text {i}" for i in numbers), num_calibration_samples=2) == ["text 0", "text 1"]
    assert next(numbers) == 2


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (torch.zeros(2, 3, 4), r"a tensor \(2, 3, 4\) of torch.float32; one of token ids is"),
        (torch.zeros(2, 3), "of torch.float32"),
        (set(TEXTS), "not a set"),
        (b"bytes", "not a bytes"),
        (lambda: TEXTS, "not a function"),
        (5, "got int"),
        ([5], "row 0 is a int"),
        ([["a", "b"]], "row 0 is a list of str"),
        ([(IDS[0], IDS[1])], "row 0 is a tuple of Tensor"),
        ([object()], "row 0 is a object"),
        ({"input_ids": [[1], [2]], "attention_mask": [[1]]}, r"input_ids \(2\), attention_mask \(1\)"),
        (Rows([{"text": "a"}, 3]), "row 1 is a int"),
    ],
)
def test_other_forms_are_refused_by_name(dataset, says):
    with pytest.raises(CalibrationError, match=says):
        words(dataset)


def test_an_open_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with (tmp_path / "a.txt").open() as file, pytest.raises(CalibrationError, match="not a TextIOWrapper"):
        words(file)


def test_a_data_set_that_fails_is_named_with_the_row():
    class Broken(Rows):
        def __getitem__(self, index):
            raise RuntimeError("the disk is gone")

    with pytest.raises(CalibrationError, match=r"row 0 cannot be read: RuntimeError: the disk is gone"):
        words(Broken([1]))


@pytest.fixture
def chat():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "content": "a"},
            ]
        },
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversation": [{"from": "user", "value": "q"}, {"from": "Assistant", "value": "a"}]},
        {"prompt": "q", "response": "a"},
        {"prompt": "q", "completion": "a"},
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        {
            "prompt": "q",
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "rejected": [],
        },
        {"instruction": "q", "output": "a", "input": ""},
        {"question": "q", "answer": "a"},
        {"problem": "q", "solution": "a"},
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    ],
)
def test_conversations_in_every_form_are_the_same(chat, row):
    assert [word.lower() for word in words([row], chat)] == ["<user>q<assistant>a"]


def test_what_an_instruction_is_about_goes_with_it_and_a_system_comes_first(chat):
    row = {"instruction": "sum up", "input": "long text", "output": "short", "system": "be brief"}

    assert words([row], chat) == ["<system>be brief<user>sum up\n\nlong text<assistant>short"]


def test_pairs_are_paragraphs_for_a_tokenizer_without_a_template():
    assert words([{"question": "why?", "answer": "because"}]) == ["why?\n\nbecause"]


def test_the_column_that_is_named_wins(chat):
    row = {"text": "plain", "messages": [{"role": "user", "content": "q"}], "body": "other"}

    assert words([row], chat) == ["plain"]
    assert words([row], chat, text_column="body") == ["other"]
    assert words([row], chat, text_column="messages") == ["<user>q"]


@pytest.mark.parametrize(
    ("turns", "says"),
    [
        ([{"role": "user", "text": "cats"}], r"row 1: the chat template renders nothing of the turns.*keys role, text"),
        ([{"speaker": "me", "says": "cats"}], "row 1: a turn has the keys speaker, says; a chat template reads role"),
        ('[{"role": "user", "content": "cats"}]', "row 1: column 'messages' holds turns written as text"),
        (["cats"], "row 1: column 'messages' holds list, not text"),
    ],
)
def test_a_conversation_of_which_nothing_would_be_read_is_an_error_with_its_row(chat, turns, says):
    good = {"messages": [{"role": "user", "content": "dogs"}]}

    with pytest.raises(CalibrationError, match=says):
        words([good, {"messages": turns}], chat)


def test_a_template_that_renders_nothing_at_all_is_an_error(chat):
    chat.chat_template = "{% if false %}x{% endif %}"

    with pytest.raises(CalibrationError, match="row 0: the chat template renders nothing"):
        words([{"messages": [{"role": "user", "content": "dogs"}]}], chat)


def test_a_template_for_the_keys_of_the_data_is_given_these(chat):
    chat.chat_template = "{% for m in messages %}[{{ m['from'] }}]{{ m['value'] }}{% endfor %}"

    assert words([{"conversations": [{"from": "human", "value": "cats"}]}], chat) == ["[human]cats"]


def test_rows_without_a_turn_or_a_word_are_left_out(chat):
    rows = [{"messages": []}, {"messages": None}, {"prompt": "", "response": None}, {"text": " "}, {"text": "a"}]

    assert words(rows, chat) == ["a"]
