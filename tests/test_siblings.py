"""Every plugin of modifiers has the shape of its siblings, and an example that runs."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from coldpress import RecipeError, load_model, oneshot, read_recipe
from coldpress.testing.mixtures import tiny_mixture
from coldpress.testing.models import batches, logits, tiny_llama, tiny_tokenizer

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
FILES = (
    "README.md",
    "src/{package}/__init__.py",
    "src/{package}/algorithm.py",
    "src/{package}/example.yaml",
    "src/{package}/modifier.py",
    "src/{package}/py.typed",
    "tests/test_algorithm.py",
    "tests/test_conformance.py",
    "tests/test_modifier.py",
)
# What a plugin lacks -> the reason.
WITHOUT = {
    ("quantization", "src/{package}/algorithm.py"): "rounding to nearest is core's, in coldpress.numerics",
    ("quantization", "tests/test_algorithm.py"): "the same",
}

# Plugin -> what its example is run on, where that is no Llama.
MODELS = {"reap": partial(tiny_mixture, "mixtral")}


def _offers_modifiers(project: Path) -> bool:
    points = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("entry-points", {})
    return "coldpress.modifiers" in points


SIBLINGS = [path.parent for path in sorted(ROOT.glob("plugins/*/pyproject.toml")) if _offers_modifiers(path.parent)]
EXAMPLES = [path for project in SIBLINGS for path in sorted(project.glob("src/*/example.yaml"))]


def _has(project: Path, file: str) -> bool:
    path = project / file.format(package=f"coldpress_{project.name}")
    folder = path.with_suffix("")  # mathematics of several pages
    return path.is_file() or (path.name == "algorithm.py" and (folder / "__init__.py").is_file())


@pytest.mark.parametrize("project", SIBLINGS, ids=lambda path: path.name)
def test_a_plugin_of_modifiers_has_the_files_of_its_siblings(project):
    missing = [file for file in FILES if not _has(project, file) and (project.name, file) not in WITHOUT]

    assert missing == []


def test_what_is_said_to_be_lacking_is():
    assert [(name, file) for name, file in WITHOUT if _has(ROOT / "plugins" / name, file)] == []


@pytest.mark.parametrize("project", SIBLINGS, ids=lambda path: path.name)
def test_a_method_card_has_the_parts_of_its_siblings(project):
    card = (project / "README.md").read_text(encoding="utf-8")

    assert card.startswith("# ")
    assert "```yaml" in card, "a recipe"
    assert "cannot" in card, "what the method cannot do"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parents[2].name)
def test_an_example_says_what_it_does_and_names_what_its_package_offers(path):
    text = path.read_text(encoding="utf-8")
    points = tomllib.loads((path.parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    named = [type(modifier).__name__ for modifier in read_recipe(path).modifiers]

    assert text.startswith("# ")
    assert set(named) & set(points["coldpress.modifiers"])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parents[2].name)
def test_an_example_runs_and_what_it_writes_computes_what_it_returns(path, tmp_path):
    build = MODELS.get(path.parents[2].name, tiny_llama)
    model = build(dtype=torch.bfloat16)
    before = logits(model, batches(rows=2))
    if any(modifier.needs().training for modifier in read_recipe(path).modifiers):
        with pytest.raises(RecipeError, match=r"use coldpress\.train"):
            oneshot(model, path, quiet=True)
        return

    returned = oneshot(
        model, path, dataset=batches(rows=4), tokenizer=tiny_tokenizer(), output_dir=tmp_path / "out", quiet=True
    )

    said = logits(returned, batches(rows=2))
    assert torch.isfinite(said).all()
    assert not torch.equal(said, before)
    assert torch.equal(logits(load_model(tmp_path / "out", device="cpu"), batches(rows=2)), said)
    report = json.loads((tmp_path / "out/report.json").read_text())["layers"]
    assert any(line["status"] in ("quantized", "changed") for line in report)
