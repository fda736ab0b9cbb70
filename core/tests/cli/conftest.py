"""A tiny model in a folder, a text, and the command line called in this process."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read when transformers is imported: here, before the command line

from coldpress.cli.app import app
from coldpress.testing.models import tiny_llama, tiny_tokenizer

SENTENCE = "The quick brown fox jumps over the lazy dog, and nobody knows why it ever did so. "


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A tiny Llama with a tokenizer; 64 columns, so that a group of 128 does not fit."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_llama(hidden=64).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def compressed(model, tmp_path_factory) -> Path:
    """The tiny Llama in W4A16."""
    folder = tmp_path_factory.mktemp("compressed") / "w4"
    answer = call("compress", model, "--scheme", "W4A16", "-a", "rtn", "--group-size", 32, "--output", folder)
    assert answer.code == 0, answer.err
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A text file of a few hundred bytes."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(SENTENCE * 6, encoding="utf-8")
    return path


@pytest.fixture
def coldpress():
    """Call the command line: `coldpress("inspect", folder)` -> code, out, err."""
    return call


def call(*words: object) -> SimpleNamespace:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "80", "NO_COLOR": "1"})
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)
