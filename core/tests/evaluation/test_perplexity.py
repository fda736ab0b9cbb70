"""Perplexity; the oracle is a loop over single tokens."""

import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from coldpress.errors import ArgumentError, ModelError, NumericsError
from coldpress.evaluation import perplexity
from coldpress.evaluation.cluster import mean_of_windows
from coldpress.testing.families import tiny_family
from coldpress.testing.models import VOCABULARY, tiny_llama, tiny_tokenizer

TEXT = "In the beginning the tokens were without form, and void; and 1234 of them were numbers. " * 5


@pytest.fixture
def model():
    return tiny_llama(hidden=64)


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def _slowly(model, ids, window, bos=()):
    """Perplexity, one token and one forward at a time."""
    losses = []
    step = window - len(bos)
    for start in range(0, len(ids), step):
        part = [*bos, *ids[start : start + step]]
        for i in range(1, len(part)):
            logits = model(torch.tensor([part[:i]])).logits[0, -1].double()
            losses.append(-(logits - logits.logsumexp(0))[part[i]].item())
    return math.exp(sum(losses) / len(losses)), len(losses)


@pytest.mark.parametrize("window", [2, 33, 64, 200])
def test_it_is_what_a_loop_over_tokens_gives(model, tokenizer, window):
    text = TEXT[:150]
    with torch.no_grad():
        value, tokens = _slowly(model, tokenizer(text).input_ids, window)

    found = perplexity(model, tokenizer, text, window=window)

    assert found.value == pytest.approx(value, rel=1e-4)
    assert found.tokens == tokens


def test_a_window_begins_with_the_beginning_token_where_the_tokenizer_writes_it(model, tokenizer):
    text, ids = TEXT[:100], tokenizer(TEXT[:100]).input_ids
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    with torch.no_grad():
        value, tokens = _slowly(model, ids, 32, bos=[tokenizer.bos_token_id])

    found = perplexity(model, tokenizer, text, window=32)

    assert found.value == pytest.approx(value, rel=1e-4)
    assert found.tokens == tokens == len(ids)


def test_a_model_that_knows_nothing_wavers_between_all_tokens(model, tokenizer):
    model.lm_head.weight.data.zero_()

    found = perplexity(model, tokenizer, TEXT, window=64)

    assert found.value == pytest.approx(VOCABULARY, rel=1e-6)
    assert found.standard_error == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("batch_size", [2, 3, 100])
def test_batching_is_only_speed(model, tokenizer, batch_size):
    single = perplexity(model, tokenizer, TEXT, window=48)

    together = perplexity(model, tokenizer, TEXT, window=48, batch_size=batch_size)

    assert together.value == pytest.approx(single.value, rel=1e-5)
    assert together.standard_error == pytest.approx(single.standard_error, rel=1e-3)
    assert together.tokens == single.tokens


def test_the_error_of_equal_windows_is_that_of_their_mean():
    sums, counts = torch.tensor([10.0, 14.0, 9.0, 15.0]), torch.full((4,), 4)

    mean, error = mean_of_windows(sums, counts)

    means = sums / 4
    assert mean == pytest.approx(means.mean().item())
    assert error == pytest.approx(means.std().item() / 2)


def test_the_error_covers_the_truth_as_often_as_it_should():
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(400):
        counts = torch.randint(5, 20, (40,), generator=generator)
        level = torch.randn(40, generator=generator)  # tokens of a window hang together
        mean, error = mean_of_windows(counts * (2 + level), counts)
        inside += abs(mean - 2) < 1.96 * error

    assert 0.91 < inside / 400 < 0.98


def test_one_window_says_nothing_of_the_error(model, tokenizer):
    assert math.isnan(perplexity(model, tokenizer, "short text").standard_error)


def test_max_tokens_is_the_beginning_of_the_text(model, tokenizer):
    cut = perplexity(model, tokenizer, TEXT, window=32, max_tokens=100)

    assert cut == perplexity(model, tokenizer, TEXT[:100], window=32)


def test_of_a_text_no_more_is_tokenized_than_is_read(model, tokenizer):
    class Counting:
        longest = 0

        def __deepcopy__(self, memo):
            return self

        def __call__(self, text, **settings):
            self.longest = max(self.longest, len(text))
            return tokenizer(text, **settings)

    counting = Counting()
    found = perplexity(model, counting, "some words " * 100_000, window=32, max_tokens=128)

    assert counting.longest < 2000
    assert found.value == perplexity(model, tokenizer, "some words " * 100, window=32, max_tokens=128).value


def test_the_tokenizer_of_a_processor_reads_the_text(model, tokenizer):
    class Processor:
        def __init__(self):
            self.tokenizer = tokenizer

    text = "some words " * 20
    assert perplexity(model, Processor(), text).value == perplexity(model, tokenizer, text).value


def test_several_texts_are_joined_by_blank_lines(model, tokenizer):
    joined = perplexity(model, tokenizer, "one text\n\nanother text", window=8)

    assert perplexity(model, tokenizer, ["one text", "another text"], window=8) == joined


def test_the_held_out_text_is_the_default(model, tokenizer):
    found = perplexity(model, tokenizer, max_tokens=256, window=64)

    assert found.tokens == 256 - 4


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_without_two_tokens_is_told(model, tokenizer, text):
    with pytest.raises(ArgumentError, match="at least 2"):
        perplexity(model, tokenizer, text)


def test_a_window_of_one_token_is_told(model, tokenizer):
    with pytest.raises(ArgumentError, match="window must be at least 2"):
        perplexity(model, tokenizer, TEXT, window=1)


def test_a_window_longer_than_the_context_is_told(model, tokenizer):
    with pytest.raises(ArgumentError, match="context of 256 tokens"):
        perplexity(model, tokenizer, TEXT, window=300)


def test_a_tokenizer_of_another_model_is_told(model, tokenizer):
    tokenizer.add_tokens(["beginning"])

    with pytest.raises(ArgumentError, match=f"vocabulary has {VOCABULARY}"):
        perplexity(model, tokenizer, TEXT, window=64)


def test_a_model_that_says_nan_is_told(model, tokenizer):
    model.model.norm.weight.data[0] = torch.nan

    with pytest.raises(NumericsError, match="window 0"):
        perplexity(model, tokenizer, TEXT, window=64)


def test_the_model_and_the_tokenizer_are_left_as_they_were(model, tokenizer):
    model.train()
    model.model.layers[0].eval()
    tokenizer.backend_tokenizer.enable_truncation(7)

    found = perplexity(model, tokenizer, TEXT[:100], window=32)

    assert found.tokens == 96
    assert model.training
    assert not model.model.layers[0].training
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 7


def test_progress_is_told_of_every_batch(model, tokenizer):
    class Seen:
        calls = ()

        def track(self, iterable, *, description, total):
            self.calls = (*self.calls, (description, total))
            return iterable

    seen = Seen()
    perplexity(model, tokenizer, TEXT[:100], window=25, batch_size=2, progress=seen)

    assert seen.calls == (("perplexity", 2),)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("bert", "gives no logits for every token"),
        ("bert_masked", "does not predict the next token"),
        ("llama_classifier", "gives no logits for every token"),
        ("t5", "does not predict the next token"),
    ],
)
def test_a_model_that_predicts_no_next_token_is_refused(kind, said, tokenizer):
    with pytest.raises(ModelError, match=f"{said}.*evaluation measures models that predict the next token"):
        perplexity(tiny_family(kind), tokenizer, TEXT[:100], window=25)


@pytest.mark.parametrize("kind", ["gemma3", "llava", "qwen2_5_vl"])
def test_a_vision_language_model_is_measured_on_text(kind, tokenizer):
    assert perplexity(tiny_family(kind), tokenizer, TEXT[:100], window=25).tokens == 96
