"""Copies of modules whose forwards were replaced on the instance."""

import functools
import types

import pytest
import torch
from handmade import GatedMLP, pairs
from torch import nn

from coldpress.dataflow.rebound import deep_copy


def closure(layer):
    old = layer.forward
    layer.forward = lambda x: old(x) / 2


def twice(layer):
    closure(layer)
    closure(layer)


def method(layer):
    layer.forward = types.MethodType(lambda self, x: nn.Linear.forward(self, x) / 2, layer)


def partial(layer):
    layer.forward = functools.partial(lambda module, x, by: nn.Linear.forward(module, x) / by, layer, by=2)


def default(layer):
    def forward(x, old=layer.forward):
        return old(x) / 2

    layer.forward = forward


def wrapped(layer):
    @functools.wraps(layer.forward)
    def forward(*args, old):
        return old(*args) / 2

    layer.forward = functools.partial(forward, old=functools.partial(layer.forward))


@pytest.mark.parametrize("replace", [closure, twice, method, partial, default, wrapped])
def test_a_copy_with_a_forward_of_its_own_computes_with_its_own_weights(replace):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    replace(model[0])
    x = torch.randn(3, 4)

    copy = deep_copy(model)
    torch.testing.assert_close(copy(x), model(x))
    model[0].weight.data.zero_()
    model[0].bias.data.zero_()

    assert copy(x).any()
    assert not model(x).any()


def test_pairs_are_those_of_the_forward_that_stands_on_the_instance():
    block = GatedMLP()
    assert "up_proj" in pairs(block)

    old = block.forward
    block.forward = lambda x: old(x) + block.up_proj(x)[..., : x.shape[-1]]

    assert "up_proj" not in pairs(block)
