"""Attention in slices: as near to float32 as torch's own, for the shapes that gain, and gone afterwards."""

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from coldpress.models import sliced
from coldpress.models.sliced import sliced_attention
from coldpress.testing import draw
from coldpress.testing.models import tiny_llama


def attended(model, tokens, **inputs):
    ids = torch.randint(3, 100, (2, tokens), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids, **inputs).logits


@pytest.fixture
def model():
    return tiny_llama().to(torch.bfloat16).eval()


@pytest.fixture
def calls(monkeypatch):
    """How many tokens each call of the kernel has queries for."""
    found, kernel = [], torch.nn.functional.scaled_dot_product_attention

    def counted(query, *rest, **more):
        found.append(query.shape[2])
        return kernel(query, *rest, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    return found


@pytest.mark.parametrize("tokens", [256, 257, 300, 320])
def test_slices_are_as_near_to_float32_as_the_whole(tokens):
    class Attention(torch.nn.Module):
        is_causal, num_key_value_groups = True, 2

    query, key, value = (draw(2, heads, tokens, 16, seed=heads + number) for number, heads in ((0, 4), (1, 2), (2, 2)))
    exact, _ = sdpa_attention_forward(Attention(), query, key, value, None)
    states = [part.bfloat16() for part in (query, key, value)]
    whole, _ = sdpa_attention_forward(Attention(), *states, None, scaling=0.25)
    with torch.no_grad(), sliced_attention():
        parts, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](Attention(), *states, None, scaling=0.25)

    assert parts.shape == whole.shape
    assert (parts - exact).norm() < 1.05 * (whole - exact).norm()


def test_a_model_of_some_hundred_tokens_is_led_through_in_slices(model, calls):
    layers = model.config.num_hidden_layers
    with sliced_attention():
        attended(model, 300)
    assert calls == [64, 64, 64, 64, 44] * layers


@pytest.mark.parametrize("tokens", [128, 800])
def test_where_slices_gain_nothing_there_are_none(model, calls, tokens):
    with sliced_attention():
        attended(model, tokens)
    assert set(calls) == {tokens}


def test_float32_gradients_and_masks_are_left_to_the_kernel(model, calls):
    mask = torch.ones(2, 300, dtype=torch.int64)
    mask[0, :40] = 0
    with sliced_attention():
        attended(model, 300, attention_mask=mask)
        attended(model.float(), 300)
        model.bfloat16()(input_ids=torch.ones(1, 300, dtype=torch.int64))
    assert set(calls) == {300}


def test_it_is_gone_when_the_last_context_closes():
    with sliced_attention():
        inside = ALL_ATTENTION_FUNCTIONS["sdpa"]
        with pytest.raises(RuntimeError, match="halfway"), sliced_attention():
            raise RuntimeError("halfway")
        assert ALL_ATTENTION_FUNCTIONS["sdpa"].func is inside.func
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
    assert not sliced._RUNS


def test_what_somebody_has_put_there_stays():
    def other(module, query, key, value, attention_mask, **more):
        return query.transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("sdpa", other)
    try:
        with sliced_attention():
            assert ALL_ATTENTION_FUNCTIONS["sdpa"] is other
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is other
    finally:
        ALL_ATTENTION_FUNCTIONS.register("sdpa", sdpa_attention_forward)
