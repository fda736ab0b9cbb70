"""A model while it is evaluated."""

import pytest
import torch
import transformers

from coldpress.models.evaluating import evaluating, uncompiled
from coldpress.testing.models import tiny_llama


def test_the_cache_is_off_in_every_configuration_and_on_again_afterwards():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 16}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))

    with evaluating(model):
        inside = model.config.use_cache, model.decoder.config.use_cache

    assert inside == (False, False)
    assert (model.config.use_cache, model.decoder.config.use_cache) == (True, True)


def test_parts_of_a_model_get_their_own_mode_of_training_back():
    model = tiny_llama()
    model.model.layers[1].train()

    with evaluating(model):
        inside = [module for module in model.modules() if module.training]

    assert not inside
    assert model.model.layers[1].mlp.training
    assert not model.model.layers[0].training


def test_the_mode_comes_back_when_the_work_fails():
    model = tiny_llama().train()

    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError

    assert model.training


def test_a_class_whose_train_does_more_is_not_asked():
    class Frozen(torch.nn.Linear):
        def train(self, mode=True):
            raise AssertionError("called")

    with evaluating(Frozen(2, 2)):
        pass


def test_a_cache_that_was_off_stays_off():
    config = transformers.LlavaConfig()
    model = torch.nn.Module()
    model.config = config
    config.text_config.use_cache = False

    with evaluating(model):
        pass

    assert config.text_config.use_cache is False


@pytest.mark.parametrize("of_class", [False, True])
def test_a_forward_that_was_compiled_is_run_as_it_was_written_and_is_there_again_afterwards(of_class):
    runs = []

    class Layer(torch.nn.Linear):
        def forward(self, x):
            runs.append(torch.compiler.is_compiling())
            return super().forward(x)

    layer = Layer(4, 4)
    place = Layer if of_class else layer
    place.forward = compiled = torch.compile(place.forward, backend="eager")
    with uncompiled(layer):
        layer(torch.ones(1, 4))

    assert runs == [False]
    assert place.forward is compiled
