"""A model while it is evaluated."""

import transformers

from coldpress.models.evaluating import evaluating
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
