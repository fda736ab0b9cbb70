"""The command line as a whole: speed, help, exit codes, what is said of errors."""

import os
import re
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from time import sleep

import pytest
import typer
from typer.testing import CliRunner

from coldpress import __version__
from coldpress.cli import border
from coldpress.errors import RecipeError

COMMANDS = ["compress", "evaluate", "inspect", "trace", "plugins", "demo"]


def coldpress_process(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coldpress", *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def seconds_of(*words: str) -> float:
    """Of work, so that a busy machine makes no difference."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert coldpress_process(*words).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("words", [("--help",), ("compress", "--help"), ("demo", "--help")])
def test_help_answers_in_half_a_second(words):
    assert min(seconds_of(*words) for _ in range(3)) < 0.5


@pytest.mark.parametrize("words", [("--help",), ("compress", "--help"), ("demo", "--help")])
def test_help_loads_nothing_heavy(words):
    answer = coldpress_process(*words, PYTHONPROFILEIMPORTTIME="1")
    loaded = {line.split("|")[-1].strip().partition(".")[0] for line in answer.stderr.splitlines()}

    assert answer.returncode == 0
    assert {"coldpress", "typer"} <= loaded
    assert not {"torch", "transformers", "datasets", "numpy", "tokenizers", "safetensors"} & loaded


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_in_80_columns(coldpress, name):
    answer = coldpress(name, "--help")

    assert answer.code == 0
    assert name in answer.out
    assert max(len(line) for line in answer.out.splitlines()) <= 80


def test_the_version_is_that_of_the_package(coldpress):
    assert coldpress("--version").out.strip() == f"coldpress {__version__}"


def test_python_minus_m_is_the_same_program():
    assert coldpress_process("--version").stdout.strip() == f"coldpress {__version__}"


@pytest.mark.parametrize(
    "words", [("compres",), ("inspect",), ("compress", "m", "--colour"), ("evaluate", "m", "--window", "one")]
)
def test_wrong_usage_ends_with_2(coldpress, words):
    answer = coldpress(*words)

    assert answer.code == 2
    assert answer.out == ""


def test_a_misspelt_command_is_corrected(coldpress):
    assert "Did you mean 'inspect'" in coldpress("inspct").err


def program(raises: BaseException) -> typer.Typer:
    """A program of one guarded command, which raises."""
    one = typer.Typer(pretty_exceptions_enable=False)

    def fail() -> None:
        raise raises

    one.command()(border.guarded(fail))
    return one


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RecipeError(["a.yaml:1:2: one", "a.yaml:3:4: two"]), 2, "error: a.yaml:1:2: one\na.yaml:3:4: two\n"),
        (OSError(28, "No space left on device", "/x/y"), 1, "error: No space left on device: /x/y\n"),
        (
            OSError(36, "File name too long", "x" * 99),
            2,
            f"error: no file system takes so long a name: '{'x' * 60}'...\n",
        ),
        (FileNotFoundError(2, "No usable temporary directory"), 1, "error: No usable temporary directory\n"),
        (MemoryError(), 1, "out of memory"),
        (KeyError("k"), 1, "this is a bug of coldpress: KeyError: 'k'; --debug shows the traceback"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_each_kind_of_error_has_its_code_and_its_words(error, code, words):
    result = CliRunner().invoke(program(error))

    assert result.exit_code == code
    assert words in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback():
    result = CliRunner().invoke(program(KeyError("k")), ["--debug"])

    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "test_app.py" in result.stderr


@pytest.mark.parametrize("words", [("--debug", "inspect", "/nowhere"), ("inspect", "/nowhere", "--debug")])
def test_debug_may_stand_before_or_after_the_command(coldpress, words):
    answer = coldpress(*words)

    assert answer.code == 2
    assert "Traceback" in answer.err


def test_a_bug_is_laid_at_the_door_of_the_plugin_that_raised(monkeypatch):
    plugin = type(
        "Plugin",
        (),
        {
            "entry": type("E", (), {"value": f"{__name__.partition('.')[0]}:X"}),
            "distribution": "p-dist",
            "version": "9",
        },
    )
    monkeypatch.setattr("coldpress.registry.available", lambda kind: [plugin])

    result = CliRunner().invoke(program(KeyError("k")))

    assert "this is a bug of the plugin p-dist 9: KeyError" in result.stderr


def wait_until_it_evaluates(process: subprocess.Popen[str]) -> None:
    """Wait until the process has loaded a model and computes with it."""
    while process.poll() is None:
        if sum(map(int, Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13])) > 900:
            return  # hundredths of a second of CPU time: more than it takes to start
        sleep(0.05)
    raise AssertionError(process.communicate()[1])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="its CPU time is read in /proc")
def test_ctrl_c_ends_with_130_and_one_line(tmp_path):
    text = tmp_path / "text"
    text.write_text("some words that a model is asked about, again and again\n" * 20_000)
    command = [sys.executable, "-m", "coldpress", "evaluate", "smollm2", "--text", str(text)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it, as we may
    with subprocess.Popen(command, preexec_fn=listening, **pipes) as process:
        wait_until_it_evaluates(process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert re.search(r"^interrupted: .*\n\Z", err, flags=re.MULTILINE)
    assert "Traceback" not in err


def test_pipes_get_no_colours(model):
    answer = coldpress_process("inspect", str(model))

    assert answer.returncode == 0
    assert "\x1b" not in answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--nsamples", "--num-calibration-samples"),
        ("--w_bit", "--bits"),
        ("--exclude", "--ignore"),
        ("--save-dir", "--output"),
        ("--percdamp", "In a recipe it is the setting 'dampening_frac'"),
    ],
)
def test_options_of_other_tools_are_hinted_at(option, hint):
    from coldpress.cli.app import app

    answer = CliRunner().invoke(app, ["compress", "model", option, "3"], terminal_width=200)

    assert answer.exit_code == 2
    assert hint in " ".join(answer.stderr.replace("│", " ").split())
