"""`coldpress compress`: what it writes, what it says, and how it refuses."""

import pytest
from typer.testing import CliRunner

from coldpress.cli.app import app
from coldpress.cli.summary import _output_errors
from coldpress.layer_report import LayerReport
from coldpress.testing.models import tiny_llama

RECIPE = """\
args:
  size: 64
quant_stage:
  quant_modifiers:
    QuantizationModifier:
      scheme: W4A16
      group_size: ${size}
      ignore: [lm_head]
"""


NOTES = {"a": {"rounding_ratio": 0.25}, "b": {"rounding_ratio": 0.75}, "c": {}}


def test_a_scheme_by_name_makes_a_checkpoint_and_says_so(coldpress, model, tmp_path):
    answer = coldpress(
        "compress", model, "--scheme", "W4A16", "--algorithm", "rtn", "--group-size", 32, "--output", tmp_path / "out"
    )

    assert answer.code == 0, answer.err
    stages = [line.partition(" (")[0] for line in answer.err.splitlines()]
    assert stages == [f"compressing {name}" for name in ("prologue", "model.layers.0", "model.layers.1", "epilogue")]
    assert answer.out.splitlines()[-1] == str(tmp_path / "out")
    for words in ("14 quantized, 2 not compressed", "int4 group 32", "times smaller", "weight error", "peak memory"):
        assert words in answer.out
    assert "ignored by QuantizationModifier" in answer.out
    assert "output error" not in answer.out  # nothing looked at outputs
    assert {"config.json", "model.safetensors", "recipe.yaml", "report.json", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


def test_errors_of_outputs_stand_beside_those_of_rounding():
    lines = [LayerReport(name, "Linear", (2, 2), "quantized", notes=notes) for name, notes in NOTES.items()]

    assert _output_errors(lines) == [("output error", "0.50 of that of rounding to nearest, at most 0.75 in b")]
    assert _output_errors(lines[2:]) == []


def test_the_summary_fits_80_columns(coldpress, model, tmp_path):
    answer = coldpress("compress", model, "--scheme", "W8A8", "--output", "out", "--output", tmp_path / "o")

    assert max(len(line.rstrip()) for line in answer.out.splitlines()[:-1]) <= 80


def test_a_recipe_from_a_file_is_filled_and_followed(coldpress, model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    answer = coldpress(
        "compress", model, "-r", tmp_path / "recipe.yaml", "--recipe-arg", "size=16", "-o", tmp_path / "out"
    )

    assert answer.code == 0, answer.err
    assert "int4 group 16" in answer.out


def test_quiet_prints_the_folder_only(coldpress, model, tmp_path):
    answer = coldpress("compress", model, "--scheme", "W8A8", "--quiet", "--output", tmp_path / "out")

    assert answer.out == f"{tmp_path / 'out'}\n"
    assert answer.err == ""


@pytest.mark.parametrize("words", [(), ("--model-free",)])
def test_a_tilde_that_no_shell_expanded_is_the_home_folder_to_the_end(coldpress, model, tmp_path, monkeypatch, words):
    monkeypatch.setenv("HOME", str(tmp_path))
    answer = coldpress("compress", model, "-s", "FP8_DYNAMIC", "-o", "~/out", *words)

    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-1] == str(tmp_path / "out")


def test_ignore_replaces_the_default(coldpress, model, tmp_path):
    answer = coldpress(
        "compress", model, "--scheme", "W8A16", "--group-size", -1, "--ignore", "re:.*mlp", "-o", tmp_path / "out"
    )

    assert answer.code == 0, answer.err
    assert "9 quantized, 7 not compressed" in answer.out  # 4 projections in 2 blocks, and lm_head


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of --recipe FILE, --scheme NAME, --bits N and --size SIZE\n"),
        (["--scheme", "W8A8", "--recipe", "r.yaml"], "not --recipe and --scheme"),
        (["--bits", "4.5", "--size", "1GB"], "not --bits and --size"),
        (["--bits", "4.5", "--algorithm", "gptq"], "--algorithm goes with --scheme"),
        (["--scheme", "W8A8", "--quality", "worst"], "--quality 'worst' is none of fast, balanced, best"),
        (["--scheme", "W8A8", "--quality", "fast", "--algorithm", "rtn"], "either --algorithm or --quality"),
        (["--scheme", "W4A61"], "did you mean 'W4A16'"),
        (["--scheme", "W8A8", "--recipe-arg", "a=1"], "--recipe-arg goes with --recipe"),
        (["--recipe", "r.yaml", "--group-size", "32"], "--group-size goes with --scheme"),
        (["--scheme", "W8A8", "--ignore", "re:.*"], "would do nothing"),
        (["--recipe", "/nowhere/r.yaml"], "/nowhere/r.yaml"),
        (["--scheme", "W8A8", "--pipeline", "basics"], "did you mean 'basic'"),
        (["--scheme", "W8A8", "--format", "compressed"], "no format is called 'compressed'"),
        (["--scheme", "W8A8", "--dtype", "bfloat61"], "bfloat16"),
        (["--scheme", "W4A16"], "128 does not divide the 64 columns"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(coldpress, model, tmp_path, words, message):
    answer = coldpress("compress", model, *words, "--output", tmp_path / "out")

    assert answer.code == 2
    assert message in answer.err
    assert "Traceback" not in answer.err
    assert answer.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_group_that_does_not_fit_comes_with_one_that_does(coldpress, model, tmp_path):
    answer = coldpress("compress", model, "--scheme", "W4A16", "--output", tmp_path / "out")

    assert "model.layers.0.self_attn.q_proj" in answer.err
    assert answer.err.endswith("pass --group-size 64\n")


def test_a_model_that_is_not_there_is_named(coldpress, tmp_path):
    answer = coldpress("compress", tmp_path / "no-such-model", "--scheme", "W8A8", "--output", tmp_path / "out")

    assert answer.code == 2
    assert "no-such-model" in answer.err


def test_an_output_that_exists_is_kept_unless_asked(coldpress, model, tmp_path):
    words = ("compress", model, "--scheme", "W8A8", "--output", tmp_path / "out")
    coldpress(*words)
    (tmp_path / "out" / "mine").write_text("precious")

    refused = coldpress(*words)
    kept = (tmp_path / "out" / "mine").exists()
    allowed = coldpress(*words, "--overwrite")

    assert refused.code == 2
    assert str(tmp_path / "out") in refused.err
    assert kept
    assert allowed.code == 0, allowed.err
    assert (tmp_path / "out" / "mine").read_text() == "precious"  # no run of ours wrote it


def test_mistakes_in_a_recipe_come_with_file_line_and_column(coldpress, model, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(RECIPE.replace("group_size: ${size}", "group_sise: 32"))

    answer = coldpress("compress", model, "--recipe", path, "--output", tmp_path / "out")

    assert answer.code == 2
    assert f"{path}:7:7" in answer.err
    assert "did you mean 'group_size'" in answer.err


def test_a_missing_plugin_says_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setattr("coldpress.registry.entry_points", lambda group: [])

    result = CliRunner().invoke(app, ["compress", str(model), "--scheme", "W8A8", "--output", str(tmp_path / "out")])

    assert result.exit_code == 2
    assert "pip install 'coldpress[quantization]'" in result.stderr


def test_the_algorithm_follows_the_scheme_and_the_first_line_says_which(coldpress, model, tmp_path):
    data = ("--num-calibration-samples", 2, "--max-seq-length", 32)
    few = coldpress("compress", model, "--scheme", "W4A16", "--group-size", 32, *data, "-o", tmp_path / "few")
    many = coldpress("compress", model, "--scheme", "W8A8", "-o", tmp_path / "many")

    assert few.code == many.code == 0, few.err + many.err
    assert few.err.startswith("algorithm: gptq, which suits 4 bits and reads calibration data; --algorithm rtn is")
    assert many.err.startswith("algorithm: rtn, which suits 8 bits and reads no data; --algorithm chooses another")
    assert "GPTQModifier" in (tmp_path / "few/recipe.yaml").read_text()
    assert "QuantizationModifier" in (tmp_path / "many/recipe.yaml").read_text()


def test_a_model_without_a_tokenizer_is_rounded_and_that_is_said(coldpress, tmp_path):
    tiny_llama(hidden=64).save_pretrained(tmp_path / "model")

    answer = coldpress("compress", tmp_path / "model", "--scheme", "W4A16", "--group-size", 32, "-o", tmp_path / "out")

    assert answer.code == 0, answer.err
    assert answer.err.startswith("algorithm: rtn: there is no tokenizer beside the model")


def test_an_algorithm_that_is_named_is_taken_and_nothing_is_said_of_it(coldpress, model, tmp_path):
    data = ("--num-calibration-samples", 2, "--max-seq-length", 32)
    answer = coldpress("compress", model, "-s", "W8A8", "-a", "smoothquant", *data, "-o", tmp_path / "out")

    assert answer.code == 0, answer.err
    assert "algorithm:" not in answer.err
    assert "SmoothQuantModifier" in (tmp_path / "out/recipe.yaml").read_text()


def test_a_recipe_by_name_is_filled_and_followed(coldpress, model, tmp_path):
    answer = coldpress("compress", model, "-r", "w4a16", "--recipe-arg", "group_size=16", "-o", tmp_path / "out")

    assert answer.code == 0, answer.err
    assert "int4 group 16" in answer.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scheme", "W4A16", "--algorithm", "gptqq"], "did you mean 'gptq'"),
        (["--scheme", "W4A16", "--algorithm", "w4a16"], "is a whole recipe, with a scheme of its own"),
        (["--recipe", "w4a16", "--algorithm", "gptq"], "--algorithm goes with --scheme"),
        (["--recipe", "gptq-w4a61"], "did you mean"),
    ],
)
def test_a_name_that_is_none_is_refused(coldpress, model, tmp_path, words, message):
    answer = coldpress("compress", model, *words, "--output", tmp_path / "out")

    assert answer.code == 2
    assert message in answer.err


@pytest.mark.parametrize(
    "option",
    [
        ("--num-calibration-samples", 3),
        ("--max-seq-length", 64),
        ("--batch-size", 2),
        ("--text-column", "words"),
        ("--no-concatenate-data",),
        ("--dtype", "float32"),
    ],
)
def test_without_the_model_options_of_a_model_that_runs_are_refused(coldpress, model, tmp_path, option):
    answer = coldpress("compress", model, "--scheme", "W8A8", "--model-free", *option, "-o", tmp_path / "out")

    assert answer.code == 2
    assert f"{option[0].replace('--no-', '--')} is for a model that runs" in answer.err
    assert list(tmp_path.iterdir()) == []


def test_without_the_model_the_first_line_says_that_weights_are_rounded(coldpress, model, tmp_path):
    words = ("compress", model, "--scheme", "W4A16", "--group-size", 32, "--model-free")

    answers = [coldpress(*words, "-o", tmp_path / "out"), coldpress(*words, "-q", "-o", tmp_path / "quiet")]

    assert [answer.code for answer in answers] == [0, 0], answers[0].err
    assert answers[0].err.startswith("algorithm: rtn")
    assert answers[1].err == ""
