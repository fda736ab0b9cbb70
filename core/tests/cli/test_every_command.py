"""One grammar for all commands: exit codes, streams, help, completion, names of other tools."""

import os
import subprocess
import sys

import pytest
import typer.main
from typer.testing import CliRunner

from coldpress.cli import border
from coldpress.cli.app import app
from coldpress.errors import ArgumentError
from coldpress.registry import available

PROGRAM = typer.main.get_command(app)
ALIKE = {"--scheme": "W8A8"}  # what a value must look like


def least(name: str) -> list[str]:
    """The command with what it cannot do without."""
    words = [name]
    for parameter in PROGRAM.commands[name].params:
        if parameter.required:
            flag = max(parameter.opts, key=len)
            words += [flag, "x"] if flag.startswith("-") else ["modifier" if parameter.name == "kind" else "x"]
    return words


def call(*words: str, **options):
    return CliRunner().invoke(app, [*words], **options)


@pytest.mark.parametrize("name", PROGRAM.commands)
@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (None, 0, ""),
        (ArgumentError("no"), 2, "error: no"),
        (KeyError("k"), 1, "this is a bug of coldpress"),
        (OSError(28, "No space left on device"), 1, "No space left"),
        (MemoryError(), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(), 141, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_command_ends_with_the_code_of_what_happened(monkeypatch, name, raised, code, words):
    class Stops(border.Told):
        def __enter__(self):
            raise typer.Exit if raised is None else raised

    monkeypatch.setattr(border, "Told", Stops)
    monkeypatch.setattr(border, "_drop_output", lambda: None)

    found = call(*least(name))

    assert (found.exit_code, found.stdout) == (code, "")
    assert words in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("name", PROGRAM.commands)
def test_every_command_refuses_an_option_that_it_does_not_have(name):
    found = call(*least(name), "--nonsense")

    assert (found.exit_code, found.stdout) == (2, "")
    assert "--nonsense" in found.stderr


@pytest.mark.parametrize("name", PROGRAM.commands)
def test_every_command_explains_itself_in_80_columns_and_on_standard_output(name):
    found = call(name, "-h", env={"COLUMNS": "80", "NO_COLOR": "1"})

    assert (found.exit_code, found.stderr) == (0, "")
    assert max(len(line) for line in found.stdout.splitlines()) <= 80


@pytest.mark.parametrize(
    "words", [("plugins",), ("schemes",), ("datasets",), ("recipes",), ("plugins", "GPTQModifier")]
)
def test_in_a_pipe_no_line_is_wrapped_or_padded(monkeypatch, words):
    monkeypatch.delenv("COLUMNS", raising=False)

    found = call(*words)

    assert (found.exit_code, found.stderr) == (0, "")
    assert [line for line in found.stdout.splitlines() if line != line.rstrip()] == []
    if words == ("plugins",):
        names = {line.split()[1] for line in found.stdout.splitlines() if len(line.split()) > 1}
        assert {plugin.name for plugin in available("modifiers")} <= names  # grep finds each of them


def completed(line: str) -> list[str]:
    """What a shell is offered at the end of a line."""
    environment = os.environ | {"_COLDPRESS_COMPLETE": "complete_bash", "COMP_WORDS": line}
    environment["COMP_CWORD"] = str(len(line.split()) - (not line.endswith(" ")))
    program = "import sys; sys.argv = ['coldpress']; from coldpress.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stderr == ""
    return done.stdout.split()


def test_a_shell_completes_commands_and_options():
    assert completed("coldpress comp") == ["compress"]
    assert completed("coldpress compress model --num-cal") == ["--num-calibration-samples"]
    assert completed("coldpress compress model --algorithm awq") == ["awq", "awq-nvfp4a16", "awq-w4a16"]


@pytest.mark.parametrize(
    ("theirs", "ours"), [("quantize", "compress"), ("eval", "evaluate"), ("export", "convert"), ("list", "plugins")]
)
def test_commands_of_other_tools_are_hinted_at(theirs, ours):
    found = call(theirs, "model", env={"COLUMNS": "200"})

    assert found.exit_code == 2
    assert f"Did you mean '{ours}'" in found.stderr
