"""Mistakes that practitioners make, who know llm-compressor, GPTQModel, AutoAWQ or llama.cpp: one message each, which
names what to type instead; exit code 2, nothing on standard output, no traceback, and no output folder.
"""

import re

import datasets
import pytest
from typer.testing import CliRunner

from coldpress.cli.app import app

RECIPE = "modifiers:\n- GPTQModifier:\n    scheme: W4A16\n    group_size: 128\n    ignore: [lm_head]\n"
GPTQ = "-s W4A16 -a gptq --group-size 32 --num-calibration-samples 4 --max-seq-length 32"
W8 = "-s W8A8"

OF_TERMINAL_MD = [
    (f"compress model {W8} -o out --ignore lm_haed", "'lm_haed', which matches no layer; .* 'lm_head'"),
    ("compress model -s GPTQ -o out", "--scheme W4A16 --algorithm gptq"),
    ("compress model -s Q4_K_M:8 -o out", "did you mean 'Q4_K_M'"),
    (f"compress model {W8} --dtype fp16 -o out", "did you mean 'float16'"),
    (f"compress model {W8} -o x.gguf", "--output 'x.gguf' is named like a file .*: pass --format 'gguf'"),
    ("compress recipe.yaml -r model -o out", "the folder of a model, .*: coldpress compress MODEL --recipe FILE"),
    (f"compress model {W8} -o model --overwrite", "the folder of the model, .* stays as it is: name another output"),
    ("compress model -r recipe.yaml -o out", r"set group_size: 64 in recipe.yaml:4\Z"),
    (f"compress model {GPTQ} --dataset two -o out", "has the splits train_sft, test_sft: choose one with --splits"),
    (f"compress model {GPTQ} --percdamp 0.1 -o out", "In a recipe it is the setting 'dampening_frac'"),
]
OF_OTHER_TOOLS = [
    (f"compress --model model {W8} -o out", "The model stands without an option: coldpress COMMAND MODEL"),
    (f"compress --model_path model {W8} -o out", "The model stands without an option"),
    (f"compress model {W8} --w_bit 4 -o out", "--bits"),
    (f"compress model {W8} --calib_data pileval -o out", "--dataset"),
    ("quantize model --bits 4", "Did you mean 'compress'"),
    ("compress model -r GPTQModifier -o out", "is a modifier; a recipe is a file that has it: `modifiers: "),
    ("compress model -r gptq -o out", "is an algorithm, which takes a scheme: --scheme W4A16 --algorithm gptq"),
    ("compress model -r w4a16 -o out", r"pass --recipe-arg group_size=64\Z"),
    ("compress model -s W4A16 -a rtn -o out", r"pass --group-size 64\Z"),
    ("compress model -s 4bit -o out", "did you mean 'W4A16'"),
    ("compress model -s nf4 -o out", "did you mean 'W4A16'"),
    ("compress model -s W4A16 -a gptqmodel -o out", r"did you mean 'gptq'\? \(installed: .*\)\Z"),
    (f"compress model {GPTQ} --dataset wikitext2 -o out", "did you mean 'wikitext'"),
    (f"compress model {GPTQ} --dataset c4-new -o out", "did you mean 'c4'"),
    (f"compress model {GPTQ} --dataset rows.jsonl -o out", "--text-column, or rename columns with --column-map"),
    (f"compress model {GPTQ} --dataset rows.jsonl:splt=test -o out", "did you mean 'split'"),
    (f"compress model {W8} --format hf -o out", "did you mean 'compressed-tensors'"),
    (f"compress model {W8} --device gpu -o out", "did you mean 'cuda'"),
    ("compress model --size 3 -o out", "--size 3 means bytes: write a unit, such as 3GB"),
    ("evaluate model --dataset wikitext", "--text"),
    ("evaluate model --text wikitext", "--text takes a file of UTF-8 text"),
    ("convert model out --to gguf", "compress it with format=, by oneshot or `coldpress compress`"),
    ("inspect recipe.yaml", "a checkpoint is a folder of safetensors files"),
    ("recipes gptq-w4", "did you mean 'gptq-w4a16'"),
    ("plugins GPTQ_Modifier", "did you mean 'GPTQModifier'"),
]


@pytest.fixture(scope="module")
def place(model, tmp_path_factory):
    """A folder with a model, a recipe, rows, and a data set of two splits."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "model").symlink_to(model)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "rows.jsonl").write_text('{"inquiry": "a b c"}\n' * 3)
    rows = datasets.Dataset.from_dict({"text": ["a b"]})
    datasets.DatasetDict({"train_sft": rows, "test_sft": rows}).save_to_disk(folder / "two")
    return folder


@pytest.mark.parametrize(("line", "message"), [*OF_TERMINAL_MD, *OF_OTHER_TOOLS], ids=lambda value: value[:60])
def test_a_mistake_is_one_message_that_names_what_to_type(place, monkeypatch, line, message):
    monkeypatch.chdir(place)
    monkeypatch.setattr("coldpress.calibration.loading.hub_is_reachable", lambda: False)
    before = sorted(path.name for path in place.iterdir())

    found = CliRunner().invoke(app, line.split(), env={"COLUMNS": "1000", "NO_COLOR": "1"})

    said = "\n".join(one.strip("│ ") for one in found.stderr.splitlines())
    assert (found.exit_code, found.stdout) == (2, ""), found.stderr
    assert said.count("error: ") + said.count("─ Error ─") == 1
    assert "Traceback" not in said
    last = said.partition("error: ")[2] or said
    assert re.search(message, last.strip(), flags=re.DOTALL), last
    assert sorted(path.name for path in place.iterdir()) == before


def test_a_scheme_with_hyphens_is_that_with_underscores(coldpress):
    assert "FP8_DYNAMIC" in coldpress("schemes", "FP8-dynamic").out
