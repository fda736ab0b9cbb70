"""Forwards that stand on instances: they run, and are what they were afterwards."""

import functools
import types

import accelerate
import peft
import pytest
import torch

from coldpress import load_model, oneshot
from coldpress.testing.models import batches, logits, tiny_llama
from coldpress_gptq import GPTQModifier


class Doubling(accelerate.hooks.ModelHook):
    def post_forward(self, module, output):
        return 2 * output


def _doubled(self, x):
    return 2 * type(self).forward(self, x)


def _bound(module):
    module.forward = types.MethodType(_doubled, module)


def _partial(module):
    module.forward = functools.partial(_doubled, module)


def _closure(module):
    plain = module.forward
    module.forward = lambda x: 2 * plain(x)


def _hooked(module):
    accelerate.hooks.add_hook_to_module(module, Doubling())


WAYS = {"a bound function": _bound, "a partial": _partial, "a closure": _closure, "a hook of accelerate": _hooked}


@pytest.mark.parametrize("place", ["model.layers.0.mlp", "model.layers.1.self_attn.o_proj"])
@pytest.mark.parametrize("way", WAYS)
def test_a_forward_on_an_instance_runs_and_stays(way, place, tmp_path):
    model = tiny_llama()
    before = logits(model, batches(rows=2))
    WAYS[way](model.get_submodule(place))
    stood = model.get_submodule(place).forward

    found = oneshot(
        model,
        GPTQModifier(scheme="W4A16", group_size=32, ignore=["lm_head"]),
        dataset=batches(),
        output_dir=tmp_path / "out",
        quiet=True,
    )

    assert found.get_submodule(place).forward == stood
    plain = load_model(tmp_path / "out", device="cpu")
    assert not torch.allclose(logits(plain, batches(rows=2)), before, atol=0.1)  # calibrated on what ran
    WAYS[way](plain.get_submodule(place))
    assert torch.equal(logits(plain, batches(rows=2)), logits(found, batches(rows=2)))


def test_layers_that_peft_left_merged_are_layers_like_any(tmp_path):
    adapted = peft.get_peft_model(tiny_llama(), peft.LoraConfig(target_modules=["q_proj", "up_proj"], r=2))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    merged = adapted.merge_and_unload()

    found = oneshot(
        merged,
        GPTQModifier(scheme="W4A16", group_size=32, ignore=["lm_head"]),
        dataset=batches(),
        output_dir=tmp_path / "out",
        quiet=True,
    )

    assert not any("lora" in name for name in found.state_dict())
    again = load_model(tmp_path / "out", device="cpu")
    assert torch.equal(logits(again, batches(rows=2)), logits(found, batches(rows=2)))
