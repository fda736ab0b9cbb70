"""`coldpress evaluate`: the numbers of the library, in JSON and in words."""

import json
import math
import shutil
from xml.etree import ElementTree

import pytest

from coldpress.evaluation import perplexity
from coldpress.testing.models import tiny_llama, tiny_tokenizer


def measure(coldpress, *words: object) -> dict:
    answer = coldpress("evaluate", *words, "--window", 64, "--device", "cpu", "--json")
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def test_perplexity_is_that_of_the_library(coldpress, model, text):
    found = measure(coldpress, model, "--text", text)["perplexity"]

    expected = perplexity(tiny_llama(hidden=64), tiny_tokenizer(), text.read_text(), window=64)
    assert found["value"] == pytest.approx(expected.value, rel=1e-5)
    assert found["standard_error"] == pytest.approx(expected.standard_error, rel=1e-3)
    assert found["tokens"] == expected.tokens


def test_a_compressed_folder_is_near_the_original_and_not_it(coldpress, model, compressed, text):
    found = measure(coldpress, compressed, "--against", model, "--text", text)

    given = {"schema", "model", "against", "text", "window"}
    assert found.keys() == {*given, "perplexity", "reference_perplexity", "divergence"}
    assert 0 < found["divergence"]["kl"] < 1
    assert 0.3 < found["divergence"]["top1_agreement"] < 1
    assert found["perplexity"]["value"] != found["reference_perplexity"]["value"]


def test_both_models_are_named(coldpress, model, compressed, text):
    answer = coldpress("evaluate", compressed, "--against", model, "--text", text, "--window", 64, "--device", "cpu")

    rows = dict(line.strip().split(maxsplit=1) for line in answer.out.splitlines())
    assert rows["reference"] == str(model)
    assert rows["model"] == str(compressed)
    assert "its perplexity" in answer.out
    assert "perplexity ratio" in answer.out


def test_a_model_is_no_distance_from_itself(coldpress, model, text):
    found = measure(coldpress, model, "--against", model, "--text", text)["divergence"]

    assert found["kl"] == 0
    assert found["top1_agreement"] == 1


def test_max_tokens_bounds_the_work(coldpress, model, text):
    assert measure(coldpress, model, "--text", text, "--max-tokens", 128)["perplexity"]["tokens"] < 128


def test_one_window_has_no_standard_error(coldpress, model, text):
    found = measure(coldpress, model, "--text", text, "--max-tokens", 32)["perplexity"]

    assert found["standard_error"] is None
    assert math.isfinite(found["value"])


def test_without_a_text_the_held_out_half_is_read(coldpress, model):
    found = measure(coldpress, model, "--max-tokens", 200)

    assert found["text"] == "coldpress/short"
    assert found["perplexity"]["tokens"] > 150


def test_the_page_has_every_number(coldpress, model, compressed, text):
    answer = coldpress("evaluate", compressed, "--against", model, "--text", text, "--window", 64)

    assert answer.code == 0, answer.err
    for words in ("perplexity", "±", "KL divergence", "top-1 agreement", "%"):
        assert words in answer.out
    assert answer.err == ""


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot read"), (b"", "is empty"), (b"\xff\xfe\x00", "is not UTF-8"), (b"a", "2")]
)
def test_a_text_that_is_none_is_refused(coldpress, model, tmp_path, content, words):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)

    answer = coldpress("evaluate", model, "--text", path)

    assert answer.code == 2
    assert words in answer.err
    assert answer.out == ""


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/tmp"])
def test_a_text_that_is_no_file_is_never_read(coldpress, model, path):
    answer = coldpress("evaluate", model, "--text", path)

    assert answer.code == 2
    assert "no regular file" in answer.err


def test_a_model_that_is_not_there_is_named(coldpress, tmp_path):
    answer = coldpress("evaluate", tmp_path / "nothing", "--json")

    assert answer.code == 2
    assert "nothing" in answer.err
    assert answer.out == ""


def test_numbers_are_kept_in_an_output_and_shown_on_its_page(coldpress, model, compressed, text, tmp_path):
    folder = shutil.copytree(compressed, tmp_path / "folder")

    found = measure(coldpress, folder, "--against", model, "--text", text, "--report", folder)

    kept = json.loads((folder / "evaluation.json").read_text())
    assert kept["divergence"] == found["divergence"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    ElementTree.fromstring(page)
    for words in ("KL, 99.9 %", "top-1 agreement", "probability of the right token", "became"):
        assert words in page
    measure(coldpress, folder, "--text", text, "--report", folder)
    assert "divergence" not in json.loads((folder / "evaluation.json").read_text())  # it was of another evaluation


def test_an_output_without_a_report_is_refused_before_a_model_is_read(coldpress, tmp_path):
    answer = coldpress("evaluate", tmp_path / "no model", "--report", tmp_path)

    assert answer.code == 2
    assert "has no report.json" in answer.err.replace("\n", " ")


def test_tasks_without_lm_eval_end_with_the_way_out(coldpress, model, monkeypatch):
    monkeypatch.setattr("coldpress.evaluation.tasks.find_spec", lambda name: None)

    answer = coldpress("evaluate", model, "--tasks", "hellaswag,arc_easy")

    assert answer.code == 2
    assert "pip install 'coldpress[lm-eval]'" in answer.err


def test_a_limit_goes_with_tasks(coldpress, tmp_path):
    answer = coldpress("evaluate", tmp_path / "no model", "--limit", 5)

    assert answer.code == 2
    assert "--limit goes with --tasks" in answer.err
