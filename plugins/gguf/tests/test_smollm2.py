"""SmolLM2 in llama.cpp: what it finds likely, how it goes on, how it cuts text."""

import copy
import random

import pytest
import torch
from llama_cpp import Engine, divergence

from coldpress import load_model, load_tokenizer, oneshot

pytestmark = [pytest.mark.slow, pytest.mark.demo]

PIECES = [
    "don't",
    "  ",
    "\n\n",
    "\t",
    "1234567",
    "Ünïcödé",
    "naïve",
    "日本語",
    "🙂",
    "a_b",
    "x==y",
    "ﬁ",
    "...",
    "It's",
    "\r\n",
    "é",
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf") / "out"
    original, tokenizer = load_model("smollm2"), load_tokenizer("smollm2")
    model = copy.deepcopy(original)
    recipe = "QuantizationModifier: {scheme: Q4_0, ignore: [lm_head]}"
    oneshot(model, recipe, output_dir=folder, format="gguf", tokenizer=tokenizer, quiet=True)
    return original, model, tokenizer, Engine(folder / "model.gguf")


def says(model, tokens):
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0, -1].float().log_softmax(0)


def test_the_engine_is_far_closer_to_our_model_than_that_to_the_original(exported):
    original, model, tokenizer, engine = exported
    far, near = 0.0, 0.0
    for prompt in ("The capital of France is", "Water boils at a temperature of", "Once upon a time there was a"):
        tokens = tokenizer(prompt).input_ids
        ours = says(model, tokens)
        near += divergence(ours, engine.log_probabilities(tokens, model.config.vocab_size))
        far += divergence(says(original, tokens), ours)

    assert near < 0.1 * far


def test_200_awkward_texts_are_cut_as_by_transformers(exported):
    _, _, tokenizer, engine = exported
    draw = random.Random(0)

    for _ in range(200):
        text = "".join(draw.choice(PIECES) + draw.choice(["", " ", "  "]) for _ in range(8))
        assert engine.tokenize(text) == tokenizer(text, add_special_tokens=False).input_ids, text
