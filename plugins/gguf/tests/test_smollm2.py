"""SmolLM2 in llama.cpp: what it finds likely, how it goes on, how it cuts text."""

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


PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time there was a little girl who",
    "In 1969 the first human being",
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf") / "out"
    tokenizer = load_tokenizer("smollm2")
    recipe = "QuantizationModifier: {scheme: Q4_0, ignore: [lm_head]}"
    oneshot(load_model("smollm2"), recipe, output_dir=folder, format="gguf", tokenizer=tokenizer, quiet=True)
    original, model = (load_model(one, dtype="float32") for one in ("smollm2", folder))
    return original, model, tokenizer, Engine(folder / "model.gguf")


def says(model, tokens):
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0, -1].float().log_softmax(0)


def test_the_engine_is_far_closer_to_our_model_than_that_to_the_original(exported):
    original, model, tokenizer, engine = exported
    far, near = 0.0, 0.0
    for prompt in PROMPTS:
        tokens = tokenizer(prompt).input_ids
        ours = says(model, tokens)
        near += divergence(ours, engine.log_probabilities(tokens, model.config.vocab_size))
        far += divergence(says(original, tokens), ours)

    assert near < 0.1 * far


def test_where_greedy_texts_part_two_tokens_are_as_likely_within_the_noise_of_the_engine(exported):
    _, model, tokenizer, engine = exported
    margins, errors = [], []
    for prompt in PROMPTS:
        tokens = tokenizer(prompt).input_ids
        steps = engine.steps(tokens, 16)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens + [token for token, _ in steps]])).logits[0]
        for ours, (token, theirs) in zip(logits[len(tokens) - 1 : -1].log_softmax(-1), steps, strict=True):
            first, second = ours.topk(2).indices.tolist()
            if second in theirs:  # inputs are rounded to 8 bits there
                errors.append(theirs[first] - theirs[second] - float(ours[first] - ours[second]))
            if token != first:
                margins.append(float(ours[first] - ours[token]))
                break

    assert len(errors) > 16
    assert max(margins, default=0.0) < torch.tensor(errors).square().mean().sqrt()


def test_200_awkward_texts_are_cut_as_by_transformers(exported):
    _, _, tokenizer, engine = exported
    draw = random.Random(0)

    for _ in range(200):
        text = "".join(draw.choice(PIECES) + draw.choice(["", " ", "  "]) for _ in range(8))
        assert engine.tokenize(text) == tokenizer(text, add_special_tokens=False).input_ids, text
