"""Samples of many lengths, through a run."""

from unittest import mock

import torch
from torch import nn

from coldpress import oneshot
from coldpress.modifiers import GPTQModifier
from coldpress.testing.models import tiny_llama


def test_a_run_pads_samples_of_many_lengths_and_leaves_the_model_as_it_was():
    model, seen = tiny_llama().bfloat16(), set()
    dataset = [{"input_ids": list(range(3, 3 + length))} for length in range(17, 47)]

    def watched(x, *weights):
        seen.add(x.shape[:-1].numel())
        return torch.nn.functional.linear(x, *weights)

    with mock.patch("coldpress.models.padded.linear", watched):
        oneshot(model, GPTQModifier(scheme="W4A16", group_size=32, ignore=["lm_head"]), dataset=dataset)

    assert seen == {32, 48}
    assert all(type(module) is nn.Linear for module in model.modules() if isinstance(module, nn.Linear))
