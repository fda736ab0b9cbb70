"""Options that a file or the environment sets."""

import json

import pytest
from typer.testing import CliRunner

from coldpress.cli.app import app

FILE = """
compress: {dtype: bfloat16, seed: 7, ignore: lm_head}
inspect:
evaluate: {max_tokens: 40}
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "my.yaml"
    monkeypatch.setenv("COLDPRESS_DEFAULTS", str(path))
    path.write_text(FILE)
    return path


def call(*words):
    return CliRunner().invoke(app, list(map(str, words)))


def listed():
    return {row["option"]: row["value"] for row in json.loads(call("defaults", "--json").stdout)["options"]}


def test_both_are_shown_with_where_they_come_from(file, monkeypatch):
    monkeypatch.setenv("COLDPRESS_COMPRESS_GROUP_SIZE", "32")

    answer = call("defaults")

    assert listed() == {
        "--dtype": "bfloat16",
        "--seed": 7,
        "--ignore": ["lm_head"],
        "--max-tokens": 40,
        "--group-size": "32",
    }
    assert "COLDPRESS_COMPRESS_GROUP_SIZE" in answer.stdout
    assert str(file) in answer.stdout.replace("\n", "")


def test_they_hold_where_the_command_line_says_nothing(file, model, text, monkeypatch):
    def tokens(*words):
        answer = call("evaluate", model, "--text", text, "--window", 64, "--device", "cpu", "--json", *words)
        return json.loads(answer.stdout)["perplexity"]["tokens"]

    assert tokens() < 40
    assert 40 < tokens("--max-tokens", 100) < 100
    monkeypatch.setenv("COLDPRESS_EVALUATE_MAX_TOKENS", "80")
    assert 40 < tokens() < 80


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("compres: {seed: 1}", "there is no command 'compres'; did you mean 'compress'?"),
        ("compress: {seeds: 1}", "compress has no option --seeds; did you mean 'seed'?"),
        ("compress: 3", "expected options of compress"),
        ("- 1", "expected a section a command"),
        ("a: [", "cannot be read"),
    ],
)
def test_mistakes_in_the_file_are_named_with_it(file, content, message):
    file.write_text(content)

    answer = call("recipes")

    assert answer.exit_code == 2
    assert message in " ".join(answer.stderr.split())
    assert "my.yaml" in answer.stderr


def test_a_value_of_another_type_is_refused(file):
    file.write_text("compress: {seed: many}")

    answer = call("compress", "model", "--scheme", "W4A16", "--output", "out")

    assert answer.exit_code == 2
    assert "'--seed'" in answer.stderr


def test_a_file_that_is_named_and_not_there_is_a_mistake(monkeypatch, tmp_path):
    monkeypatch.setenv("COLDPRESS_DEFAULTS", str(tmp_path / "none.yaml"))

    assert call("recipes").exit_code == 2


def test_without_a_file_nothing_is_set(monkeypatch, tmp_path):
    monkeypatch.delenv("COLDPRESS_DEFAULTS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    assert listed() == {}
    assert "is not there" in call("defaults").stdout
