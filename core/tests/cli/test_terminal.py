"""What a person sees: on a terminal of 80 and of 200 columns, on a dumb one, without colours, in a pipe and in a file;
and where each of the eighteen findings is proven, of a day that a practitioner spent at the terminal.
"""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FINDINGS = {  # what was found -> the tests that prove that it is mended
    "1 --overwrite replaces the model, or files of the user's": [
        "tests/test_output_places.py::test_an_output_in_place_of_the_model_is_refused",
        "core/tests/checkpoint/test_writer.py::test_overwriting_leaves_in_place_what_no_run_wrote",
    ],
    "2 a misspelt --ignore; sizes that are not those of files": [
        "core/tests/run/test_ignore.py::test_a_misspelt_name_is_an_error_with_near_names",
        "core/tests/cli/test_inspect.py::test_parts_add_up_to_the_file",
    ],
    "3 text files are not packed; fewer samples in silence": [
        "core/tests/calibration/test_tokens.py::test_packed_samples_are_the_text_and_begin_and_end_as_texts_do",
        "core/tests/calibration/test_dataset.py::test_fewer_samples_than_asked_for_are_logged_and_used",
    ],
    "4 what is compressed is rounded again in silence": [
        "core/tests/cli/test_terminal.py::test_a_compressed_folder_is_not_rounded_again_in_silence"
    ],
    "5 --group-size for a recipe; a line for each layer": [
        "core/tests/cli/test_mistakes.py::test_a_mistake_is_one_message_that_names_what_to_type",
        "core/tests/cli/test_terminal.py::test_a_size_that_does_not_fit_has_a_line_for_each_kind_of_layer",
    ],
    "6 pipes wrap and pad; a closed pipe is a bug": [
        "core/tests/cli/test_every_command.py::test_in_a_pipe_no_line_is_wrapped_or_padded",
        "core/tests/cli/test_surroundings.py::test_a_pipe_that_is_closed_ends_a_command_as_sigpipe_would",
    ],
    "7 README: what is not published, and no way to serve": [
        "tests/test_doc_blocks.py::test_the_blocks_of_a_page_run_one_after_the_other",
        "tests/test_readme.py::test_the_targets_that_are_named_exist",
    ],
    "8 docs: defaults and caches": [
        "core/tests/cli/test_terminal.py::test_the_observer_of_static_inputs_is_documented",
    ],
    "9 usual sets of the hub; messages in the words of Python": [
        "core/tests/cli/test_option_words.py::test_all_arguments_of_the_data_that_can_be_typed_are_options",
        "core/tests/cli/test_option_words.py::test_arguments_are_named_by_their_options",
        "core/tests/cli/test_option_words.py::test_several_data_sets_are_read_in_proportion",
    ],
    "10 silence in pipes": [
        "core/tests/cli/test_terminal.py::test_in_a_file_and_in_a_pipe_each_stage_has_a_plain_line",
        "core/tests/report/test_progress.py::test_a_pipe_gets_a_line_for_each_stage_and_none_for_what_is_inside",
    ],
    "11 settings and presets cannot be listed": [
        "core/tests/cli/test_plugins.py::test_everything_that_we_ship_works",
        "core/tests/cli/test_schemes.py::test_every_preset_has_a_line_with_bits_and_an_engine",
        "core/tests/test_spelling.py::test_names_of_other_tools_are_known",
    ],
    "12 --json": ["core/tests/cli/test_json.py::test_every_key_is_documented_under_the_form_and_its_version"],
    "13 doors without types, no report after a run": [
        "core/tests/arguments/test_keywords.py::test_mypy_finds_each_mistake_of_ten_scripts_and_no_other",
        "core/tests/test_spelling.py::test_a_misspelt_setting_in_python_is_named_as_in_a_recipe",
        "tests/test_oneshot.py::test_the_run_is_one_attribute_of_the_model_away",
    ],
    "14 completion, defaults, -V": [
        "core/tests/cli/test_every_command.py::test_a_shell_completes_commands_and_options",
        "core/tests/cli/test_defaults.py::test_both_are_shown_with_where_they_come_from",
        "core/tests/cli/test_app.py::test_the_version_is_that_of_the_package",
    ],
    "15 weight error ranks backwards; sparsity and KV cache; names of presets": [
        "core/tests/cli/test_compress.py::test_errors_of_outputs_stand_beside_those_of_rounding",
        "core/tests/cli/test_inspect.py::test_a_quantized_cache_has_a_line",
        "core/tests/cli/test_terminal.py::test_zeros_and_presets_are_named",
    ],
    "16 evaluate: digits, names, swapped models": [
        "core/tests/cli/test_evaluate.py::test_both_models_are_named",
        "core/tests/cli/test_words.py::test_decimals_are_enough_to_compare_runs",
    ],
    "17 messages about swapped arguments, resumes, schemes, dtypes, x.gguf": [
        "core/tests/cli/test_mistakes.py::test_a_mistake_is_one_message_that_names_what_to_type",
        "tests/test_resume.py::test_other_data_are_refused",
    ],
    "18 display: bars, foreign bars, Ctrl-C": [
        "core/tests/cli/test_terminal.py::test_on_a_terminal_bars_fit_its_width_and_are_gone_at_the_end",
        "core/tests/cli/test_app.py::test_ctrl_c_ends_with_130_and_one_line",
    ],
}
TESTS = sorted({test for tests in FINDINGS.values() for test in tests})
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.mark.parametrize("test", TESTS)
def test_every_proof_of_a_finding_is_there(test):
    file, _, name = test.partition("::")

    assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")


def on_terminal(*words: object, columns: int = 80, **environment: str) -> tuple[int, str, str]:
    """Exit code, standard output, and what a terminal of so many columns got on standard error."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "coldpress", *map(str, words)]
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    streams = {"stdin": theirs, "stdout": subprocess.PIPE, "stderr": theirs, "text": True}
    with subprocess.Popen(command, env=kept | {"TERM": "xterm-256color"} | environment, **streams) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # as Linux tells the end of it
                break
            if not part:
                break
            seen += part
        out = process.stdout.read()
    os.close(ours)
    return process.returncode, out, seen.decode()


def lines_of(seen: str) -> list[str]:
    """What was written to a terminal, without colours and moves, in lines."""
    return [line for line in re.split(r"[\r\n]+", _CONTROL.sub("", seen)) if line.strip()]


@pytest.fixture(scope="module")
def words(model):
    """A run that reads data, but for its output."""
    data = ("--num-calibration-samples", 4, "--max-seq-length", 32)
    return ("compress", model, "-s", "W4A16", "-a", "gptq", "--group-size", 32, *data, "--device", "cpu", "-o")


@pytest.mark.parametrize("columns", [80, pytest.param(200, marks=pytest.mark.slow)])
def test_on_a_terminal_bars_fit_its_width_and_are_gone_at_the_end(words, tmp_path, columns):
    code, out, seen = on_terminal(*words, tmp_path / "out", columns=columns)

    assert code == 0, seen
    assert out.splitlines()[-1] == str(tmp_path / "out")
    assert max(len(line) for line in lines_of(seen) if "calibration:" not in line) <= columns
    assert any("compressing" in line and "4" in line for line in lines_of(seen))
    assert lines_of(seen)[0].startswith("calibration: 'coldpress/short', 4 samples, 128 tokens")
    assert "\x1b[2K" in seen.rpartition("compressing")[2]  # the bar is erased
    assert seen.count("\x1b[?25l") == seen.count("\x1b[?25h")  # and the cursor is back


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}], ids=str)
def test_without_colours_there_are_none(environment):
    code, _, seen = on_terminal("recipes", "nowhere", **environment)

    assert code == 2
    assert "error: " in seen
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", seen)


def test_in_a_file_and_in_a_pipe_each_stage_has_a_plain_line(model, tmp_path):
    command = [sys.executable, "-m", "coldpress", "compress", str(model), "-s", "W8A8", "-o", str(tmp_path / "out")]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, check=True, env=environment)

    lines = (tmp_path / "log").read_text().splitlines()
    stages = [line.partition(" (")[0] for line in lines if line.startswith("compressing")]
    assert stages == [f"compressing {name}" for name in ("prologue", "model.layers.0", "model.layers.1", "epilogue")]
    assert [line for line in done.stdout.splitlines() + lines if "\x1b" in line or line != line.rstrip()] == []


def test_a_compressed_folder_is_not_rounded_again_in_silence(coldpress, compressed, tmp_path):
    answer = coldpress("compress", compressed, "-s", "W8A8", "-o", tmp_path / "out")

    assert "quantized" in answer.err
    assert re.search("second time|again|anew|already", answer.err)


def test_a_size_that_does_not_fit_has_a_line_for_each_kind_of_layer(coldpress, model, tmp_path):
    answer = coldpress("compress", model, "-s", "W4A16", "-a", "rtn", "--group-size", 48, "-o", tmp_path / "out")

    lines = [line for line in answer.err.splitlines() if "48 does not divide" in line]
    assert answer.code == 2
    assert [line.partition("layer (")[2] for line in lines] == ["11 more like it)", "1 more like it)"]
    assert "mlp.down_proj" in lines[1]  # which has other columns
    assert answer.err.endswith("pass --group-size 64\n")


def test_zeros_and_presets_are_named(coldpress, model, tmp_path):
    data = ("--num-calibration-samples", 4, "--max-seq-length", 32)

    pruned = coldpress("compress", model, "-r", "wanda-2of4", *data, "-o", tmp_path / "pruned")
    rounded = coldpress("compress", model, "-s", "FP8_DYNAMIC", "-o", tmp_path / "fp8")

    assert pruned.code == rounded.code == 0, pruned.err + rounded.err
    assert "zero weights" in pruned.out
    assert "50.0% in compressed layers" in pruned.out
    assert "50.0% in compressed layers" in coldpress("inspect", tmp_path / "pruned").out
    assert "FP8_DYNAMIC: float8 channel" in rounded.out


def test_the_observer_of_static_inputs_is_documented():
    from coldpress import preset

    text = (ROOT / "plugins/quantization/README.md").read_text(encoding="utf-8")

    assert {preset(name).input_activations.observer for name in ("FP8", "NVFP4")} == {"static_minmax"}
    assert "| `input_observer` | the preset's: `static_minmax` of FP8 and NVFP4, else `minmax` |" in text
