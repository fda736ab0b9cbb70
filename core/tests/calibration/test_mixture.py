"""Several data sets in proportions, settings behind a name, renamed columns, and chat templates of the user's own."""

import json

import pytest

from coldpress.arguments import DatasetArguments
from coldpress.calibration.dataset import load_calibration
from coldpress.calibration.mixture import parts_of
from coldpress.errors import ArgumentError, CalibrationError
from coldpress.testing.models import tiny_tokenizer

TEMPLATE = "{% for m in messages %}{{ tone }}{{ m['content'] }} {% endfor %}"
CHAT = [{"messages": [{"role": "user", "content": "hello there"}]}]


@pytest.fixture
def files(tmp_path):
    """Two files of rows, of 40 and of 3."""
    for name, count in (("a", 40), ("b", 3)):
        rows = [json.dumps({"text": f"{name} row {i}", "words": f"{name} words {i}"}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    return tmp_path


def load(dataset, tokenizer=None, **arguments):
    given = DatasetArguments(dataset=dataset, **arguments)
    return load_calibration(given, tokenizer or tiny_tokenizer())


def texts(dataset, **arguments):
    tokenizer = tiny_tokenizer()
    batches = load(dataset, tokenizer, shuffle_calibration_samples=False, **arguments).batches
    return [tokenizer.decode(ids) for batch in batches for ids in batch["input_ids"]]


def test_the_samples_are_divided_in_proportion(files):
    found = load({f"{files}/a.jsonl": 0.8, f"{files}/b.jsonl": 0.2}, num_calibration_samples=10)

    assert [(part.samples, part.asked_samples) for part in found.summary.parts] == [(8, 8), (2, 2)]
    assert found.summary.samples == 10
    assert f"'{files}/a.jsonl' (8 samples) and '{files}/b.jsonl' (2 samples), 10 samples" in found.summary.line()
    assert found.summary.warnings() == []


def test_one_that_has_fewer_is_named(files):
    found = load({f"{files}/a.jsonl": 1, f"{files}/b.jsonl:share=3": 1}, num_calibration_samples=20)

    assert found.summary.samples == 5 + 3
    assert found.summary.warnings() == [f"'{files}/b.jsonl' gives 3 samples, and 15 were asked for"]


@pytest.mark.parametrize(("count", "counts"), [(10, [3, 3, 4]), (512, [171, 170, 171]), (3, [1, 1, 1])])
def test_what_does_not_divide_goes_to_the_largest_remainders(count, counts):
    shares = {"a": 1.0, "b": 0.999, "c": 1.001}

    found = parts_of(DatasetArguments(dataset=shares, num_calibration_samples=count))

    assert [one.num_calibration_samples for one in found] == counts
    assert sum(counts) == count


def test_settings_stand_behind_the_name(files):
    path = f"{files}/a.jsonl"

    assert texts(f"{path}:column=words,split=train[:2]") == texts(path, text_column="words", splits="train[:2]")
    assert texts(f"{path}:column=words,split=train[:2]") == ["a words 0", "a words 1"]


def test_what_is_on_disk_under_the_whole_name_is_that(files):
    odd = files / "odd:split=train.jsonl"
    odd.write_text((files / "b.jsonl").read_text())

    assert len(texts(str(odd), num_calibration_samples=9)) == 3


@pytest.mark.parametrize(
    ("dataset", "arguments", "message"),
    [
        ("a:splt=test", {}, r"'splt=test' is no setting of a data set; did you mean 'split'"),
        ("a:split=", {}, "'split=' is no setting"),
        ("a:split=x,split=y", {}, "has split= twice"),
        ("a:split=x", {"splits": "y"}, "has split=, and splits= says it too"),
        ("a:share=none", {}, "a share is a number above 0, got 'none'"),
        ({"a": 0, "b": 1}, {}, "a share is a number above 0, got 0"),
        ({"a": 1, "b": 1e-6}, {}, "so small a share that none of 512 samples"),
        ({"a": 1, "b": 1}, {"num_calibration_samples": None}, "need a number of samples"),
        ({"a": 1, "b": 1}, {"dataset_path": "c"}, "dataset_path"),
    ],
)
def test_a_mistake_is_named(dataset, arguments, message):
    with pytest.raises((ArgumentError, CalibrationError), match=message):
        parts_of(DatasetArguments(dataset=dataset, **arguments))


@pytest.mark.parametrize("given", [{"words": "text"}, ["words=text"]])
def test_columns_are_renamed_before_anything_reads_them(files, given):
    found = texts(f"{files}/b.jsonl", column_map=given)

    assert found == ["b words 0", "b words 1", "b words 2"]


def test_a_dict_of_columns_that_are_renamed_is_one():
    assert texts({"inquiry": ["one", "two"]}, column_map={"inquiry": "text"}) == ["one", "two"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"word": "text"}, r"no column 'word', which column_map= renames; did you mean 'words'"),
        (["words"], "column_map takes OLD=NEW, got 'words'"),
        ({"text": "x", "words": "x"}, "gives two columns one name"),
        ({"words": 3}, "goes from the name of a column to another name"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(files, given, message):
    with pytest.raises((ArgumentError, CalibrationError), match=message):
        texts(f"{files}/b.jsonl", column_map=given)


def test_a_map_of_running_text_is_worth_a_warning(files, caplog):
    (files / "plain.txt").write_text("words " * 200)

    load(str(files / "plain.txt"), max_seq_length=32, column_map={"a": "b"})

    assert "column_map has no effect" in caplog.text


def test_a_chat_template_of_the_users_own_is_taken_from_a_file_or_a_text(files):
    (files / "own.jinja").write_text(TEMPLATE)
    given = {"chat_template_kwargs": ["tone=softly "]}

    assert texts(CHAT, chat_template=files / "own.jinja", **given) == texts(CHAT, chat_template=TEMPLATE, **given)
    assert "softly" in texts(CHAT, chat_template=TEMPLATE, **given)[0]


def test_what_the_template_does_not_read_is_named(caplog):
    texts(CHAT, chat_template=TEMPLATE, chat_template_kwargs={"tones": 1})

    assert "the chat template reads no 'tones'; did you mean 'tone'" in caplog.text


def test_what_calibration_decides_is_refused():
    with pytest.raises(ArgumentError, match="'max_length' is decided by calibration: pass max_seq_length"):
        DatasetArguments(chat_template_kwargs={"max_length": 3})


def test_a_template_that_is_no_file_is_named():
    with pytest.raises(CalibrationError, match=r"chat_template='nowhere.jinja' is no template, and no file with one"):
        texts(CHAT, chat_template="nowhere.jinja")


def test_values_on_a_terminal_are_those_of_a_recipe():
    given = DatasetArguments(chat_template_kwargs=["enable_thinking=false", "depth=3"], raw_kwargs=["revision=main"])

    assert given.chat_template_kwargs == {"enable_thinking": False, "depth": 3}
    assert given.raw_kwargs == {"revision": "main"}
