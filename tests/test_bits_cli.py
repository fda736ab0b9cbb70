"""`coldpress compress --bits` and `--size`, from the command line to the file."""

import pytest
from typer.testing import CliRunner

from coldpress.cli.app import app
from coldpress.testing.models import tiny_llama, tiny_tokenizer

DATA = ("--num-calibration-samples", "2", "--max-seq-length", "32", "--group-size", "32")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_llama(hidden=64).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


def compress(*words):
    return CliRunner().invoke(app, ["compress", *map(str, words)], env={"COLUMNS": "80", "NO_COLOR": "1"})


def test_a_size_is_met_by_the_file(model, tmp_path):
    out = tmp_path / "out"

    answer = compress(model, "--size", "190KB", "--quality", "fast", *DATA, "-o", out, "--quiet")

    assert answer.exit_code == 0, answer.stderr
    weights = (out / "model.safetensors").stat().st_size
    assert 100_000 < weights < 200_000  # the header, of some kilobytes, is not counted
    assert (out / "autobits_recipe.yaml").is_file()


def test_a_size_that_no_choice_meets_is_refused_before_anything_is_run(model, tmp_path):
    answer = compress(model, "--size", "20KB", *DATA, "-o", tmp_path / "out")

    assert answer.exit_code == 2
    assert "is less than the smallest choice" in answer.stderr
    assert list(tmp_path.iterdir()) == []
