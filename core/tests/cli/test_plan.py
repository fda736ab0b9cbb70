"""`coldpress plan`: the options of compress, tables of 80 columns, JSON, and code 2."""

import json


def test_the_plan_is_told_in_80_columns_and_writes_nothing(coldpress, model, tmp_path):
    answer = coldpress("plan", model, "--scheme", "W4A16", "--group-size", 32, "--output", tmp_path / "out")

    assert answer.code == 0, answer.err
    for words in ("bits per weight", "host memory", "peaks in", "while it runs", "model.layers.*", "not compressed"):
        assert words in answer.out
    assert max(len(line.rstrip()) for line in answer.out.splitlines()) <= 80
    assert list(tmp_path.iterdir()) == []


def test_json_holds_what_the_table_says(coldpress, model, tmp_path):
    answer = coldpress("plan", model, "--scheme", "W4A16", "--group-size", 32, "--json")
    coldpress("compress", model, "--scheme", "W4A16", "--group-size", 32, "--output", tmp_path / "out")

    found = json.loads(coldpress("inspect", tmp_path / "out", "--json").out)
    assert json.loads(answer.out)["size"]["bytes_after"] == found["bytes"]


def test_a_run_without_the_model_is_planned(coldpress, model, tmp_path):
    words = (model, "--scheme", "W4A16", "--group-size", 32, "--model-free")
    told, answer = coldpress("plan", *words), coldpress("plan", *words, "--max-workers", 2, "--json")
    coldpress("compress", *words, "--output", tmp_path / "out")

    assert "model.layers.*" in told.out
    found = json.loads(coldpress("inspect", tmp_path / "out", "--json").out)
    assert json.loads(answer.out)["size"]["bytes_after"] == found["bytes"]


def test_what_could_not_end_well_exits_with_2(coldpress, model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")

    for words in (
        (tmp_path / "nothing", "--scheme", "W8A8"),
        (model, "--scheme", "W4A16"),
        (model,),
        (model, "--scheme", "W8A8", "--max-workers", 2),
        (model, "--scheme", "W8A8", "--model-free", "--dtype", "float32"),
        (model, "--scheme", "W8A8", "--output", tmp_path / "out"),
    ):
        answer = coldpress("plan", *words)
        assert answer.code == 2
        assert "error: " in answer.err


def test_an_option_about_the_output_goes_with_one(coldpress, model):
    answer = coldpress("plan", model, "--scheme", "W8A8", "--overwrite")

    assert answer.code == 2
    assert "--overwrite goes with --output" in answer.err
