"""Scales of symmetric integers that may be negative: chosen, written, read back, and never told to an engine."""

import json

import pytest
import torch
from safetensors.torch import load_file

from coldpress import SchemeError, load_model, oneshot
from coldpress.quantized import encoding_of
from coldpress.testing.models import batches, tiny_llama, tiny_tokenizer

LINEAR = {"scheme": "W4A16", "group_size": 32, "ignore": ["lm_head"], "signed_scales": True}
RECIPES = {
    "rounding": {"QuantizationModifier": LINEAR},
    "mse": {"QuantizationModifier": {**LINEAR, "weight_observer": "mse"}},
    "int8": {"QuantizationModifier": {"scheme": "W8A8", "ignore": ["lm_head"], "signed_scales": True}},
    "gptq": {"GPTQModifier": {**LINEAR, "refit_scales": True}},
    "autoround": {"AutoRoundModifier": {**LINEAR, "iters": 3}},
}


def compress(modifier, *, written=None, **settings):
    model, recipe = tiny_llama(dtype=torch.bfloat16), {"modifiers": [modifier]} | (written or {})
    oneshot(model, json.dumps(recipe), dataset=batches(), tokenizer=tiny_tokenizer(), quiet=True, **settings)
    return model


def encodings(model):
    return {name: found.quantized for name, m in model.named_modules() if (found := encoding_of(m)) is not None}


@pytest.mark.parametrize("name", RECIPES)
def test_a_checkpoint_comes_back_as_it_was_returned(tmp_path, name):
    model = compress(RECIPES[name], output_dir=tmp_path / "out")

    scales = torch.cat([one.scale.flatten().sign() for one in encodings(model).values()])
    assert 0.2 < float((scales < 0).float().mean()) < 0.8
    config = (tmp_path / "out" / "config.json").read_text()
    assert "signed_scales" not in config
    again = load_model(tmp_path / "out", dtype=torch.bfloat16)
    for part, one in encodings(again).items():
        assert torch.equal(one.scale, encodings(model)[part].scale)
    assert all(torch.equal(weight, again.state_dict()[part]) for part, weight in model.state_dict().items())


@pytest.mark.parametrize("name", ["gptq", "gguf"])
def test_other_formats_keep_the_signs(tmp_path, name):
    settings = {"pre_tokenizer": "gpt-2"} if name == "gguf" else {}
    model = compress(RECIPES["rounding"], output_dir=tmp_path / "out", written={"format": {name: settings}})

    again = load_model(tmp_path / "out", dtype=torch.bfloat16)
    for part, one in encodings(again).items():
        assert torch.equal(one.scale.sign(), encodings(model)[part].scale.sign())
    assert all(torch.equal(weight, again.state_dict()[part]) for part, weight in model.state_dict().items())


@pytest.mark.parametrize("modifier", ["QuantizationModifier", "GPTQModifier"])
def test_two_bits_lose_less(modifier):
    def lost(**settings):
        groups = {"all": {"targets": ["Linear"], "weights": {"num_bits": 2, "group_size": 32}}}
        model = compress({modifier: {"config_groups": groups, "ignore": ["lm_head"], **settings}})
        pairs = zip(model.parameters(), tiny_llama(dtype=torch.bfloat16).parameters(), strict=True)
        return sum(float((a.detach().float() - b.detach().float()).square().sum()) for a, b in pairs)

    assert lost(signed_scales=True) < 0.9 * lost()


def test_other_number_formats_are_as_ever(tmp_path):
    for signed in (True, False):
        recipe = {"QuantizationModifier": {"scheme": "W4A16_ASYM", "group_size": 32, "signed_scales": signed}}
        compress(recipe, output_dir=tmp_path / str(signed))

    one, other = (load_file(tmp_path / str(signed) / "model.safetensors") for signed in (True, False))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_scales_of_inputs_have_one_sign():
    args = {"num_bits": 8, "strategy": "tensor"}
    groups = {"all": {"targets": ["Linear"], "weights": args, "input_activations": {**args, "signed_scales": True}}}

    with pytest.raises(SchemeError, match="input_activations: signed scales"):
        compress({"QuantizationModifier": {"config_groups": groups}})
