"""Value heads by experiment: which rows of the value projection, and which columns of what reads it, turn together."""

import pytest
import torch
from handmade import MLP, WIDTH, Attention, Experts, GatedMLP, PreNorm, RMSNorm, call, flow
from torch import nn
from torch.nn import functional as F

from coldpress.dataflow.heads import find_heads
from coldpress.dataflow.rotate import rotate
from coldpress.dataflow.stream_bench import StreamBench
from coldpress.numerics import random_orthogonal


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class GatedHeads(Attention):
    """What attention gives is gated channel by channel before it is read, as in Qwen3-Next."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH)
        self.out = self.o_proj
        self.o_proj = nn.Identity()

    def forward(self, x):
        return self.out(super().forward(x) * self.gate(x).sigmoid())


def heads(block):
    return find_heads(StreamBench(block.eval(), call()), flow(block))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_heads_of_grouped_query_attention_are_those_of_the_values(groups):
    (found,) = heads(Attention(groups=groups))

    assert found.head_dim == 4
    assert [(site.parameter, site.dim) for site in found.writers] == [("v_proj.weight", 0), ("v_proj.bias", 0)]
    assert [(site.parameter, site.dim) for site in found.readers] == [("o_proj.weight", 1)]


def test_of_a_fused_layer_only_the_value_rows_turn():
    (found,) = heads(PreNorm(RMSNorm(), Attention(fused=True)))

    assert [site.rows.tolist() for site in found.writers] == [list(range(24, 32))] * 2


def test_every_rotation_of_the_heads_keeps_the_function():
    block, (x,) = Attention().double(), call().args
    (found,) = heads(block)
    before = block(x.double())

    rotate(block, (), found.rotations(random_orthogonal(found.head_dim, torch.Generator().manual_seed(1))))

    assert (block(x.double()) - before).norm() < 1e-12 * before.norm()


@pytest.mark.parametrize("block", [GatedMLP(), MLP(F.relu), GatedHeads()], ids=["product", "relu", "gated"])
def test_channels_that_something_acts_on_one_by_one_are_no_heads(block):
    assert heads(block) == []


def test_an_expert_that_no_token_chose_proves_no_heads():
    block, few = PreNorm(RMSNorm(), Experts(experts=6)).eval(), call(rows=1, tokens=4)
    found = flow(block, few)

    assert any("up_proj" in name for name in found.unreached)
    assert find_heads(StreamBench(block, few), found) == []
