"""A model whose weights are read stage by stage is smoothed like one in memory, to the last bit."""

import json

import pytest
import torch

from coldpress import load_model, oneshot
from coldpress.testing.models import tiny_llama, tiny_tokenizer

TEXTS = [{"text": "Oil is a word, and this is a sentence about it."}] * 4
RECIPES = {
    "smoothquant": "modifiers: [SmoothQuantModifier: {}, QuantizationModifier: {scheme: W8A8, ignore: [lm_head]}]",
    "awq": "modifiers: [AWQModifier: {}, GPTQModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head]}]",
}


@pytest.mark.parametrize("pipeline", ["sequential", "layer_sequential"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_same_checkpoint_comes_of_a_folder_and_of_a_model(name, pipeline, tmp_path):
    tiny_llama(dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    model = load_model(str(tmp_path / "model"), dtype=torch.bfloat16, device="cpu")
    common = {"dataset": TEXTS, "pipeline": pipeline, "quiet": True}

    oneshot(str(tmp_path / "model"), RECIPES[name], output_dir=str(tmp_path / "streamed"), **common)
    oneshot(model, RECIPES[name], tokenizer=tiny_tokenizer(), output_dir=str(tmp_path / "memory"), **common)

    streamed, memory = ((tmp_path / kind / "model.safetensors").read_bytes() for kind in ("streamed", "memory"))
    assert streamed == memory
    layers = json.loads((tmp_path / "streamed/report.json").read_text())["layers"]
    lines = layers if isinstance(layers, list) else layers.values()
    assert sum("smoothed_in" in line["notes"] for line in lines) == 14
