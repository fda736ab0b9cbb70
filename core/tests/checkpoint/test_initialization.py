"""Whether transformers can fill a model whose layers have no weight."""

import pytest
import torch

from coldpress.checkpoint.initialization import initialization_reads_weights
from coldpress.stage import find_layers
from coldpress.testing.families import FAMILIES, tiny_family

NEEDED = {"gemma3", "t5"}


@pytest.mark.parametrize("kind", FAMILIES)
def test_classes_that_reach_into_layers_are_known_and_the_model_stays_as_it_is(kind):
    model = tiny_family(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = [layer.name for layer in find_layers(model.named_modules()) if isinstance(layer.module, torch.nn.Linear)]

    found = initialization_reads_weights(model, layers)

    assert found == (kind in NEEDED)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_only_layers_that_are_reached_into_count():
    assert not initialization_reads_weights(tiny_family("gemma3"), ["model.language_model.layers.0.mlp.up_proj"])
    assert not initialization_reads_weights(torch.nn.Linear(2, 2), [""])
    assert not initialization_reads_weights(None, ["x"])
