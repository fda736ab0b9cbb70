"""`coldpress diff`: in words, and as JSON."""

import json


def test_the_words_name_what_differs(coldpress, model, compressed):
    answer = coldpress("diff", model, compressed)

    assert answer.code == 0, answer.err
    assert "differ" in answer.out
    assert "14 differs" in answer.out
    assert "int4 group 32" in answer.out
    assert "and 4 more" in answer.out


def test_json_has_every_tensor(coldpress, model, compressed, tmp_path):
    answer = coldpress("diff", model, compressed, "--json", "--output", tmp_path / "page.html")

    assert answer.code == 0, answer.err
    assert "The weights differ" in (tmp_path / "page.html").read_text(encoding="utf-8")
    found = json.loads(answer.out)
    assert found["same_weights"] is False
    assert found["counts"]["differs"] == 14
    assert all(0 < one["error"] < 0.5 for one in found["tensors"] if one["status"] == "differs")


def test_a_folder_that_is_missing_is_a_mistake(coldpress, model, tmp_path):
    answer = coldpress("diff", model, tmp_path / "nothing")

    assert answer.code == 2
    assert "nothing" in answer.err
