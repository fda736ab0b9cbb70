"""Every example runs, on a tiny model in a folder; the one that everybody starts with also on the real one."""

import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from coldpress import load_model
from coldpress.testing.kit import Verdicts, checks_for
from coldpress.testing.models import batches, logits, tiny_llama, tiny_tokenizer
from coldpress.testing.subject import subject_of

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
MAGNITUDE = EXAMPLES / "third_party/magnitude"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny model in a folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_llama(dtype=torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs an example in an empty folder; its arguments are the command line's."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return tmp_path

    return run


def config_of(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def test_fp8_dynamic(run, tiny, capsys):
    output = run("fp8_dynamic.py", tiny) / "tiny-FP8-Dynamic"

    assert config_of(output)["format"] == "float-quantized"
    assert "lm_head" in config_of(output)["ignore"]
    assert (output / "tokenizer.json").exists()
    assert "vllm serve tiny-FP8-Dynamic" in capsys.readouterr().out


def test_a_script_written_for_llmcompressor(run, tiny, capsys):
    output = run("from_llmcompressor.py", tiny) / "tiny-FP8-Dynamic"

    assert config_of(output)["format"] == "float-quantized"
    assert (output / "tokenizer.json").exists()
    assert "Hello my name is" in capsys.readouterr().out


def test_both_ways_of_saving_give_one_model(run, tiny):
    first = load_model(str(run("fp8_dynamic.py", tiny) / "tiny-FP8-Dynamic"))
    (Path("tiny-FP8-Dynamic")).rename("first")
    second = load_model(str(run("from_llmcompressor.py", tiny) / "tiny-FP8-Dynamic"))

    assert torch.equal(logits(first, batches(rows=2)), logits(second, batches(rows=2)))


def test_only_the_imports_of_that_script_are_ours():
    lines = (EXAMPLES / "from_llmcompressor.py").read_text().splitlines()

    assert [line for line in lines if "coldpress" in line] == [
        "from coldpress import oneshot",
        "from coldpress.modifiers import QuantizationModifier",
    ]


def test_w4a16(run, tiny, capsys):
    output = run("w4a16.py", tiny) / "tiny-W4A16"

    assert config_of(output)["format"] == "pack-quantized"
    assert "The capital of France is" in capsys.readouterr().out


def test_from_recipe(run, tiny):
    output = run("from_recipe.py", tiny) / "tiny-w8a8_static"

    (group,) = config_of(output)["config_groups"].values()
    assert group["input_activations"]["dynamic"] is False


def test_from_another_recipe(run, tiny):
    output = run("from_recipe.py", tiny, ROOT / "recipes/w8a8.yaml") / "tiny-w8a8"

    assert config_of(output)["format"] == "int-quantized"


def test_every_example_has_a_test():
    tests = Path(__file__).read_text()

    elsewhere = {"axolotl_plugin.py"}  # test_train_elsewhere.py
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert [name for name in sorted(names - elsewhere) if f'"{name}"' not in tests] == []
    assert elsewhere <= names


@pytest.mark.slow
@pytest.mark.demo
def test_fp8_dynamic_on_the_embedded_model(run):
    output = run("fp8_dynamic.py") / "smollm2-FP8-Dynamic"

    assert config_of(output)["format"] == "float-quantized"
    model = load_model(str(output))
    assert model.num_parameters() > 100_000_000


# --- the package of a stranger


@pytest.fixture
def magnitude():
    path = MAGNITUDE / "src/coldpress_magnitude_example.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MagnitudeExampleModifier


def test_a_whole_package_has_at_most_sixty_lines():
    files = [path for path in MAGNITUDE.rglob("*") if path.suffix in (".py", ".toml")]

    assert len(files) == 3
    assert sum(len(path.read_text().splitlines()) for path in files) <= 60


def test_it_keeps_every_promise(magnitude):
    subject = subject_of(magnitude, kind=None, settings={})
    checks = checks_for(subject)
    verdicts = Verdicts(subject, checks)

    assert [check.name for check in checks if not verdicts.holds(check.name)] == []


def test_its_test_is_one_line():
    lines = (MAGNITUDE / "tests/test_magnitude.py").read_text().splitlines()
    name = re.search(r"coldpress\.modifiers\"\]\n(\w+) =", (MAGNITUDE / "pyproject.toml").read_text())[1]

    assert lines[-1] == f'test_conformance = conformance("{name}")'
