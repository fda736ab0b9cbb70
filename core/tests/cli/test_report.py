"""`coldpress report`: the page of a folder, or why there is none."""

import json
import shutil
from xml.etree import ElementTree

import pytest


def test_the_page_is_written_again(coldpress, compressed, tmp_path):
    folder = shutil.copytree(compressed, tmp_path / "folder")
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()

    answer = coldpress("report", folder)

    assert answer.code == 0, answer.err
    assert answer.out.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_bytes() == before


def test_the_page_goes_where_it_is_asked_to(coldpress, compressed, tmp_path):
    answer = coldpress("report", compressed, "--output", tmp_path / "page.html")

    assert answer.code == 0, answer.err
    ElementTree.parse(tmp_path / "page.html")


@pytest.mark.parametrize("words", ["plain", "missing"])
def test_a_folder_without_a_report_is_refused(coldpress, model, tmp_path, words):
    answer = coldpress("report", model if words == "plain" else tmp_path / "nothing")

    assert answer.code == 2
    assert "has no report.json" in answer.err.replace("\n", " ")


@pytest.mark.parametrize("content", ["{", "[]", '{"layers": 3}', '{"layers": [{"name": 1}]}'])
def test_a_damaged_report_is_refused(coldpress, compressed, tmp_path, content):
    folder = shutil.copytree(compressed, tmp_path / "folder")
    (folder / "report.json").write_text(content)
    before = (folder / "report.html").read_bytes()

    answer = coldpress("report", folder)

    assert answer.code == 2, answer.err
    assert "report.json" in answer.err
    assert (folder / "report.html").read_bytes() == before
    assert json.loads((folder / "manifest.json").read_text())


def test_a_damaged_evaluation_is_named(coldpress, compressed, tmp_path):
    folder = shutil.copytree(compressed, tmp_path / "folder")
    (folder / "evaluation.json").write_text('{"perplexity": {"value": "low"}}')

    answer = coldpress("report", folder)

    assert answer.code == 2, answer.err
    assert "evaluation.json" in answer.err.replace("\n", "")


def test_a_folder_is_no_place_for_the_page(coldpress, compressed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    answers = [coldpress("report", compressed, "--output", place) for place in (".", tmp_path)]

    assert [answer.code for answer in answers] == [2, 2]
    assert all("it is a folder" in answer.err for answer in answers)
    assert list(tmp_path.iterdir()) == []
