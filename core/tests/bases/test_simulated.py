"""Layers that compute with other weights and rounded inputs for a while."""

import pytest
import torch

from coldpress.bases.simulated import simulated
from coldpress.numerics import fake_quantize
from coldpress.plugin import Layer, Quantized, preset
from coldpress.stage import class_names, find_layers
from coldpress.testing.models import batches, logits, tiny_conv1d, tiny_llama
from coldpress.testing.trace import differences, trace_of


def layers_of(model):
    found = find_layers(model.named_modules())
    return [layer for layer in found if "Linear" in layer.classes and layer.name != "lm_head"]  # which may be tied


@pytest.mark.parametrize("build", [tiny_llama, tiny_conv1d])
def test_inside_a_model_computes_with_the_weights_and_afterwards_with_its_own(build):
    model, data = build(), batches(rows=2)
    before, said = trace_of(model), logits(model, data)
    halves = {layer: layer.weight / 2 for layer in layers_of(model)}
    with simulated(halves):
        inside = logits(model, data)

    assert torch.equal(logits(model, data), said)
    assert differences(before, trace_of(model)) == []
    for layer, half in halves.items():
        layer.weight.copy_(half)
    torch.testing.assert_close(logits(model, data), inside)


@pytest.mark.parametrize("build", [tiny_llama, tiny_conv1d])
def test_gradients_reach_the_weights_and_no_parameter(build):
    model = build()
    leaves = {layer: layer.weight.clone().requires_grad_() for layer in layers_of(model)[:7]}
    with torch.no_grad(), simulated(leaves), torch.enable_grad():
        loss = model(**batches(rows=1)[0]).logits.square().mean()
        found = torch.autograd.grad(loss, list(leaves.values()))

    assert all(bool(gradient.any()) for gradient in found)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_inputs_are_rounded_inside_and_pass_gradients_straight_through():
    module, x = torch.nn.Linear(16, 4, bias=False), torch.randn(3, 16, requires_grad=True)
    layer = Layer("it", module, class_names(module))
    scheme = preset("W8A8")
    quantized = Quantized(scheme)
    with simulated({}, [(layer, quantized)]):
        y = module(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)

    scale = x.detach().abs().amax(-1, keepdim=True) / 127.5
    rounded = fake_quantize(x.detach(), scale, None, scheme.input_activations)
    torch.testing.assert_close(y, rounded @ module.weight.t())
    inside = x.detach().abs() < 127 * scale  # the largest of a token may count as clipped
    torch.testing.assert_close(gradient[inside], module.weight.sum(0).expand(3, 16)[inside])
    torch.testing.assert_close(module(x), x @ module.weight.t())


def test_an_error_inside_leaves_nothing_behind():
    model = tiny_llama()
    before = trace_of(model)
    with pytest.raises(ZeroDivisionError), simulated({layer: layer.weight * 2 for layer in layers_of(model)}):
        _ = 1 / 0

    assert differences(before, trace_of(model)) == []
