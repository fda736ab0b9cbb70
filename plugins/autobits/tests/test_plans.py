"""How far a plan is from the original: rounded inputs, padding, tied weights, and a model that stays as it was."""

import pytest
import torch

from coldpress.plugin import Stage, State, preset
from coldpress.testing.models import batches, logits, tiny_conv1d, tiny_llama
from coldpress.testing.trace import changed, differences, trace_of, weights_of
from coldpress_autobits.noise import InputNoise
from coldpress_autobits.plans import divergence_of


@pytest.fixture(autouse=True)
def without_graphs():
    with torch.no_grad():
        yield


def layers_of(model, *ignore):
    return Stage.whole(model).layers(["Linear"], ["lm_head", *ignore])


def kl_of(wanted, said):
    """The mean KL a token, from logits."""
    log_p, log_q = wanted.float().log_softmax(-1), said.float().log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@pytest.mark.parametrize("build", [tiny_llama, tiny_conv1d])
def test_it_is_that_of_a_model_with_these_weights(build):
    model, data = build(), batches(rows=2)
    state, wanted = State(model=model, batches=data), logits(model, data)
    halves = {layer: layer.weight / 2 for layer in layers_of(model)}
    found = divergence_of(state, halves, {}, tokens=64)
    for layer, half in halves.items():
        layer.weight.copy_(half)

    assert found == pytest.approx(kl_of(wanted, logits(model, data)), rel=1e-4)


@pytest.mark.parametrize("name", ["FP8", "FP8_DYNAMIC", "NVFP4"])
def test_inputs_are_rounded_where_they_are_meant_to_be_and_the_model_is_as_before(name):
    model, data = tiny_llama(dtype=torch.bfloat16), batches(rows=2)
    noise = InputNoise(args=preset(name).input_activations)
    before, weights = trace_of(model), weights_of(model)
    some, every = layers_of(model, "re:.*mlp.*"), layers_of(model)
    state = State(model=model, batches=data)

    none, few, all_of_them = (
        divergence_of(state, {}, dict.fromkeys(part, noise), tokens=64) for part in ([], some, every)
    )

    assert none == 0
    assert 0 < few < all_of_them
    assert differences(before, trace_of(model)) == []
    assert changed(weights, model) == []


def test_padding_does_not_count():
    model, ids = tiny_llama(), batches(rows=1)[0]["input_ids"]
    mask = torch.ones_like(ids)
    mask[:, 5:] = 0
    halves = {layer: layer.weight / 2 for layer in layers_of(model)}

    padded, short = (
        divergence_of(State(model=model, batches=[batch]), halves, {}, tokens=64)
        for batch in ({"input_ids": ids, "attention_mask": mask}, {"input_ids": ids[:, :5]})
    )

    assert padded == pytest.approx(short, rel=1e-4)


def test_a_head_with_another_weight_leaves_the_embedding_that_it_is_tied_to():
    model, data = tiny_llama(tied=True), batches(rows=2)
    (head,) = Stage.whole(model).layers(["lm_head"])
    wanted = logits(model, data)

    found = divergence_of(State(model=model, batches=data), {head: head.weight / 2}, {}, tokens=64)

    assert found == pytest.approx(kl_of(wanted, wanted / 2), rel=1e-4)
