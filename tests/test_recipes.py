"""Every recipe is read, written, read again, and run."""

import json
from pathlib import Path

import pytest
import torch

from coldpress import load_model, oneshot, read_recipe, write_recipe
from coldpress.plugin import QUANTIZES
from coldpress.testing.models import batches, logits, tiny_llama, tiny_tokenizer

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
TEXTS = [{"text": f"{word} is a word, and this is a sentence about it."} for word in ("Oil", "Olive", "Press", "Cold")]
every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def compress(recipe, folder, **arguments):
    return oneshot(
        tiny_llama(dtype=torch.bfloat16),
        recipe,
        tokenizer=tiny_tokenizer(),
        dataset=TEXTS,
        output_dir=str(folder),
        quiet=True,
        **arguments,
    )


def quantization_config(folder):
    return json.loads((folder / "config.json").read_text()).get("quantization_config", {})


@every_recipe
def test_it_is_read_and_written_and_read_again(path):
    text = write_recipe(read_recipe(path))

    assert write_recipe(read_recipe(text)) == text


@every_recipe
def test_it_runs_and_what_it_makes_is_loaded_again(path, tmp_path):
    model = compress(path, tmp_path / "out")
    loaded = load_model(str(tmp_path / "out"))

    quantizes = any(QUANTIZES in modifier.traits for modifier in read_recipe(path).modifiers)
    method = quantization_config(tmp_path / "out").get("quant_method")
    assert method == ("compressed-tensors" if quantizes else None)
    torch.testing.assert_close(logits(loaded, batches(rows=2)), logits(model, batches(rows=2)))


@every_recipe
def test_the_recipe_in_the_checkpoint_makes_the_same_checkpoint(path, tmp_path):
    compress(path, tmp_path / "first")
    compress(tmp_path / "first/recipe.yaml", tmp_path / "second")

    first, second = (sorted(folder.glob("*.safetensors")) for folder in (tmp_path / "first", tmp_path / "second"))
    assert [path.name for path in first] == [path.name for path in second]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


@every_recipe
def test_it_says_what_it_is_for(path):
    assert path.read_text().startswith("# ")


def test_the_grammar_of_llmcompressor_says_the_same(tmp_path):
    folder = Path(RECIPES[0]).parent
    compress(folder / "w4a16.yaml", tmp_path / "ours", recipe_args={"group_size": 64})
    compress(folder / "llmcompressor_stages.yaml", tmp_path / "theirs")

    ours, theirs = (tmp_path / name / "model.safetensors" for name in ("ours", "theirs"))
    assert ours.read_bytes() == theirs.read_bytes()
