"""`coldpress demo`: on a tiny model here, on the embedded one where there is time."""

import json

import pytest


@pytest.fixture
def on_tiny_model(model, monkeypatch):
    monkeypatch.setattr("coldpress.cli.demo._MODEL", str(model))
    monkeypatch.setattr("coldpress.cli.demo._QUICK", {"max_tokens": 512, "window": 128})


def test_one_table_holds_every_scheme_and_two_sentences(coldpress, on_tiny_model):
    answer = coldpress("demo", "--quick", "--schemes", "W8A8", "--schemes", "W4A16:64")

    assert answer.code == 0, answer.err
    for words in ("on disk", "perplexity", "KL", "top-1", "memory", "W8A8", "W4A16:64", "The capital of France is"):
        assert words in answer.out


def test_checkpoints_are_kept_when_asked(coldpress, on_tiny_model, tmp_path):
    answer = coldpress("demo", "--quick", "--schemes", "W4A16:64", "--output", tmp_path / "demo")

    assert answer.code == 0, answer.err
    found = coldpress("inspect", tmp_path / "demo" / "W4A16-g64", "--json")
    assert json.loads(found.out)["parts"][0]["name"].startswith("int4 group 64")


@pytest.mark.parametrize(
    ("name", "message"), [("W4A61", "did you mean 'W4A16'"), ("W4A16:big", "NAME:GROUP_SIZE"), ("W4A16:63", "63")]
)
def test_a_scheme_that_is_none_is_refused(coldpress, on_tiny_model, name, message):
    answer = coldpress("demo", "--quick", "--schemes", name)

    assert answer.code == 2
    assert message in answer.err


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.timeout(900)
def test_the_embedded_model_survives_eight_bits_and_still_knows_paris(coldpress):
    answer = coldpress("demo", "--quick")

    assert answer.code == 0, answer.err
    assert answer.out.count("The capital of France is Paris") == 5
    assert max(len(line) for line in answer.out.splitlines()) <= 80
