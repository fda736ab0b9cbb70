"""How far a model is from a reference."""

import math

import pytest
import torch

from coldpress.errors import ArgumentError, NumericsError
from coldpress.evaluation import divergence, perplexity
from coldpress.testing.models import tiny_llama, tiny_tokenizer

TEXT = "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse. " * 3


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def _noisy(model, size):
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=generator)
    return model


def test_a_model_is_no_way_from_itself(tokenizer):
    model = tiny_llama(hidden=64)

    found = divergence(model, model, tokenizer, TEXT, window=64)

    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.top1_agreement == 1
    assert found.tokens == perplexity(model, tokenizer, TEXT, window=64).tokens


def test_it_is_what_float64_gives_token_by_token(tokenizer):
    model, reference = _noisy(tiny_llama(hidden=64), 0.05), tiny_llama(hidden=64)
    ids = tokenizer(TEXT).input_ids
    kl, same, change = [], [], []
    with torch.no_grad():
        for start in range(0, len(ids), 50):
            part = torch.tensor([ids[start : start + 50]])
            q, p = (m.double()(part).logits[0, :-1].softmax(-1) for m in (model, reference))
            kl += (p * (p / q).log()).sum(-1).tolist()
            same += (q.argmax(-1) == p.argmax(-1)).tolist()
            change += [
                float(after[token] - before[token]) for after, before, token in zip(q, p, part[0, 1:], strict=True)
            ]

    found = divergence(model.float(), reference.float(), tokenizer, TEXT, window=50)

    assert found.tokens == len(kl)
    assert found.kl == pytest.approx(sum(kl) / len(kl), rel=1e-4)
    assert found.top1_agreement == pytest.approx(sum(same) / len(same))
    assert 0 < found.kl_standard_error < found.kl
    ratio = (
        perplexity(model, tokenizer, TEXT, window=50).value / perplexity(reference, tokenizer, TEXT, window=50).value
    )
    assert found.log_ratio == pytest.approx(math.log(ratio), abs=1e-5)
    assert found.log_ratio_standard_error > 0
    assert found.delta_p == pytest.approx(sum(change) / len(change), rel=1e-3)
    ordered, places = sorted(kl), {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "99.9 %": 0.999, "largest": 1}
    for name, share in places.items():
        assert sum(value <= found.kl_percentiles[name] * (1 + 1e-4) for value in ordered) / len(ordered) >= share
        assert sum(value < found.kl_percentiles[name] * (1 - 1e-4) for value in ordered) / len(ordered) < share
    assert found.delta_p_percentiles["0.1 %"] == pytest.approx(min(change), rel=1e-3)


def test_it_grows_with_the_noise(tokenizer):
    reference = tiny_llama(hidden=64)

    near, far = (
        divergence(_noisy(tiny_llama(hidden=64), size), reference, tokenizer, TEXT, window=64) for size in (0.01, 0.1)
    )

    assert 0 < near.kl < far.kl
    assert near.top1_agreement >= far.top1_agreement


def test_batching_is_only_speed(tokenizer):
    model, reference = _noisy(tiny_llama(hidden=64), 0.05), tiny_llama(hidden=64)

    single, together = (divergence(model, reference, tokenizer, TEXT, window=40, batch_size=b) for b in (1, 4))

    assert together.kl == pytest.approx(single.kl, rel=1e-4)
    assert together.kl_standard_error == pytest.approx(single.kl_standard_error, rel=1e-3)


def test_it_is_directed(tokenizer):
    model, reference = _noisy(tiny_llama(hidden=64), 0.2), tiny_llama(hidden=64)

    there, back = (
        divergence(model, reference, tokenizer, TEXT, window=64),
        divergence(reference, model, tokenizer, TEXT, window=64),
    )

    assert there.kl != pytest.approx(back.kl, rel=1e-3)
    assert there.top1_agreement == back.top1_agreement


def test_models_of_different_vocabularies_are_told(tokenizer):
    larger = tiny_llama(hidden=64)
    larger.resize_token_embeddings(300, mean_resizing=False)

    with pytest.raises(ArgumentError, match="different vocabularies, 259 and 300"):
        divergence(tiny_llama(hidden=64), larger, tokenizer, TEXT, window=64)


@pytest.mark.parametrize("broken", [0, 1])
def test_nan_in_either_model_is_told(tokenizer, broken):
    models = [tiny_llama(hidden=64), tiny_llama(hidden=64)]
    models[broken].model.norm.weight.data[3] = torch.nan

    with pytest.raises(NumericsError):
        divergence(*models, tokenizer, TEXT, window=64)
