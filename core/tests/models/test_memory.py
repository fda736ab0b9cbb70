"""Parameters and buffers in the memory of others."""

import pytest
import torch
from torch import nn

from coldpress import oneshot
from coldpress.models.memory import shares_memory
from coldpress.testing.models import tiny_llama

ROUNDING = "QuantizationModifier: {scheme: W8A16, group_size: -1, ignore: [lm_head]}"


def _views(mlp):
    joint = torch.randn(300, 128, generator=torch.Generator().manual_seed(0))
    mlp.gate_proj.weight, mlp.up_proj.weight = nn.Parameter(joint[:256]), nn.Parameter(joint[44:])


def _expanded(mlp):
    row = torch.randn(1, 128, generator=torch.Generator().manual_seed(0))
    mlp.gate_proj.weight = nn.Parameter(row.expand(256, 128))


def _data(mlp):
    mlp.up_proj.weight = nn.Parameter(mlp.gate_proj.weight.data)


def _buffer(mlp):
    mlp.register_buffer("before", mlp.gate_proj.weight.data)


@pytest.mark.parametrize("share", [_views, _expanded, _data, _buffer])
def test_a_change_of_one_tensor_changes_no_other(share):
    model, plain = tiny_llama(), tiny_llama()
    share(model.model.layers[0].mlp)
    before = {name: tensor.clone() for name, tensor in model.model.layers[0].mlp.named_buffers()}
    for name, tensor in model.named_parameters():
        plain.get_submodule(name.rpartition(".")[0]).weight = nn.Parameter(tensor.detach().clone())

    oneshot(model, ROUNDING, quiet=True)
    oneshot(plain, ROUNDING, quiet=True)

    assert all(torch.equal(tensor, plain.get_parameter(name)) for name, tensor in model.named_parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.layers[0].mlp.named_buffers())


def test_what_is_one_stays_one_and_what_lies_beside_another_stays_there():
    model = tiny_llama(tied=True)
    joint = torch.randn(256, 128)
    attention = model.model.layers[0].self_attn
    attention.q_proj.weight, attention.o_proj.weight = nn.Parameter(joint[:128]), nn.Parameter(joint[128:])
    model.model.register_buffer("angles", model.model.rotary_emb.inv_freq[:4])

    assert not shares_memory(model)
    assert not shares_memory(model.to("meta"))
