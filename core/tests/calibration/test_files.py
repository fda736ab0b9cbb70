"""Files of text, JSON and CSV: rows with their places, damaged ones refused by name, none that never end."""

import csv
import json
import os
import socket

import pytest

from coldpress.arguments import DatasetArguments
from coldpress.calibration.dataset import load_batches
from coldpress.calibration.files import joined, read_file, read_pieces
from coldpress.errors import CalibrationError, ColdpressError
from coldpress.testing.models import tiny_tokenizer


@pytest.fixture
def written(tmp_path):
    """A function that writes a file and returns its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "one"}\n\n{"text": "two"}'),
        ("a.json", '{"text": "one"}\n{"text": "two"}\n'),
        ("a.json", '\ufeff[\n {"text": "one"},\n {"text": "two"}\n]'),
        ("a.json", '{"data": [{"text": "one"},\n {"text": "two"}]}'),
        ("a.json", '{"text": ["one", "two"]}'),
        ("a.json", '{"text": ["one", "two"], "n": [1, 2]}'),
        ("a.csv", "text,n\r\none,1\r\ntwo\r\n"),
    ],
)
def test_a_file_gives_its_rows_in_every_form(written, name, content):
    rows = read_file(written(name, content))

    assert [row["text"] for row in rows if row] == ["one", "two"]


def test_lines_of_a_text_are_rows_only_if_they_are_asked_for(written):
    path = written("a.txt", "one\r\ntwo\n\nthree")

    assert list(read_file(path)) == ["one", "two", "", "three"]
    assert list(read_pieces(path, 1000)) == ["one\r\ntwo\n\nthree"]


@pytest.mark.parametrize("content", ["ab cd\n" * 300, "é" * 1000, "wörter " * 400, "x" * 2000 + "\n" + "y" * 70])
@pytest.mark.parametrize("size", [128, 997])
def test_pieces_of_a_text_are_the_text_and_no_longer_than_asked_for(written, content, size):
    pieces = read_pieces(written("a.txt", content), size)

    assert "".join(pieces) == content
    assert all(len(piece.encode()) <= size for piece in pieces)
    assert pieces.is_running_text
    assert all(piece.endswith("\n") for piece in pieces) or not content.endswith("\n")


def test_files_are_one_after_the_other_with_their_own_places(written):
    rows = joined([read_file(written(name, '{"text": 1}\n{"text": 2}\n')) for name in ("a.jsonl", "b.jsonl")])

    assert [row["text"] for row in rows] == [1, 2, 1, 2]
    assert rows.where(3).endswith("b.jsonl', line 2")
    assert rows.part(1, 3).where(1).endswith("b.jsonl', line 1")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', r"line 2 is not UTF-8 text \(byte 24 of the file\)"),
        ("a.txt", b"caf\xe9", "not UTF-8"),
        ("a.csv", b"text\ncaf\xe9", "not UTF-8"),
        ("a.jsonl", '{"text": "a"}\n{"text":', "line 2 cannot be read as JSON"),
        ("a.jsonl", "[" * 100_000, "line 1 cannot be read as JSON: it is nested too deeply"),
        ("a.json", "[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("a.json", "5", "must hold a list of rows"),
        ("a.json", '{"a": [1], "b": [1, 2]}', "row 0 has no column 'text'"),
        ("a.csv", "text\na,b,c\n", "line 2: more fields than the header has columns"),
        ("a.jsonl", "5\n", "line 1 is a int: an item must be text"),
        ("a.jsonl", '{"input_ids": "1 2"}', "line 1: column 'input_ids' must hold token ids .* not the text '1 2'"),
        ("a.jsonl", '{"input_ids": ["1"]}', "line 1: column 'input_ids' must hold token ids .* not a list of str"),
        ("a.jsonl", '{"input_ids": [1.5]}', "line 1: column 'input_ids' must hold token ids"),
        ("a.jsonl", '{"input_ids": [1, [2]]}', "line 1: column 'input_ids' must hold token ids"),
        ("a.jsonl", '{"input_ids": [99999999999999999999]}', "not a list of int of other sizes"),
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", "\n\n", "none of its 2 rows holds a token"),
    ],
)
def test_damaged_data_are_refused_with_their_place(written, name, content, says):
    arguments = DatasetArguments(dataset=str(written(name, content)), shuffle_calibration_samples=False)

    with pytest.raises(CalibrationError, match=says):
        load_batches(arguments, tiny_tokenizer())


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="has no devices")
def test_what_is_no_regular_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.jsonl")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.txt"))

        for path in ("/dev/null", "/dev/zero", tmp_path / "fifo.jsonl", tmp_path / "socket.txt"):
            with pytest.raises(CalibrationError, match="is no regular file"):
                load_batches(DatasetArguments(dataset=str(path)), tiny_tokenizer())


@pytest.mark.parametrize("name", ["x" * 5000 + ".jsonl", "~nobody-of-this-name/a.jsonl", "no\0thing.jsonl"])
def test_names_that_no_file_can_have_are_refused(name):
    with pytest.raises(ColdpressError, match="dataset|cannot be a path|is no path"):
        load_batches(DatasetArguments(dataset=name), tiny_tokenizer())


def test_one_object_of_json_is_one_row(written):
    turns = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}

    assert list(read_file(written("a.json", json.dumps(turns)))) == [turns]
    assert list(read_file(written("a.json", '{"input_ids": [1, 2]}'))) == [{"input_ids": [1, 2]}]
    assert list(read_file(written("a.json", '{"input_ids": [[1], [2]]}'))) == [{"input_ids": [1]}, {"input_ids": [2]}]


def test_a_field_of_csv_may_be_longer_than_the_reader_thinks(written):
    text = "word " * 50_000
    before = csv.field_size_limit()

    (row,) = read_file(written("a.csv", f'text\n"{text}"\n'))

    assert row == {"text": text}
    assert csv.field_size_limit() == before


def test_rows_that_lack_the_column_are_left_out_and_named(written, caplog):
    rows = [{"text": "one"}, {"txt": "two"}, {"text": "three"}]
    path = written("a.jsonl", "\n".join(json.dumps(row) for row in rows))

    batches = load_batches(DatasetArguments(dataset=str(path)), tiny_tokenizer())

    assert sum(len(batch["input_ids"]) for batch in batches) == 2
    assert "line 2 has no column 'text'; did you mean 'txt'" in caplog.text


def test_where_the_home_folder_cannot_be_written_data_are_cached_elsewhere(written, monkeypatch, caplog):
    datasets = pytest.importorskip("datasets")
    path = written("a.parquet", b"")
    datasets.Dataset.from_dict({"text": ["one", "two"]}).to_parquet(str(path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/proc/none/cache")

    batches = load_batches(DatasetArguments(dataset=str(path)), tiny_tokenizer())

    assert sum(len(batch["input_ids"]) for batch in batches) == 2
    assert "/proc/none/cache cannot be written" in caplog.text
