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
