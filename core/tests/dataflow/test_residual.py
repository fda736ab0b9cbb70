"""The residual stream by experiment: readers, writers and norms of small blocks, and why others cannot be rotated."""

import pytest
import torch
from handmade import MLP, WIDTH, Attention, Conv1D, Experts, GatedMLP, Parallel, PreNorm, RMSNorm, call, flow
from torch import nn
from torch.nn import functional as F

from coldpress.dataflow.call import Call
from coldpress.dataflow.fold import gain
from coldpress.dataflow.probe import probe
from coldpress.dataflow.residual import find_residual
from coldpress.dataflow.rotate import Folding, rotate
from coldpress.dataflow.stream_bench import StreamBench, shell
from coldpress.errors import ModelError
from coldpress.numerics import rotation_of


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Sandwich(nn.Module):
    """x + norm(inner(norm(x))), as in Gemma 2."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.post_norm = RMSNorm(), GatedMLP(), RMSNorm()
        nn.init.uniform_(self.post_norm.weight, 0.5, 2.0)

    def forward(self, x):
        return x + self.post_norm(self.inner(self.norm(x)))


class Gated(nn.Module):
    """The stream itself gates what is added to it, which no linear layer can take back."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = RMSNorm(), GatedMLP()

    def forward(self, x):
        return x + x.sigmoid() * self.inner(self.norm(x))


class TwoStreams(nn.Module):
    """A second stream chooses what is done with the first one, as BLT's patches are chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.embed_choice = nn.Embedding(8, WIDTH), nn.Embedding(8, WIDTH)
        self.block, self.block_choice = nn.Identity(), nn.Identity()
        self.norm, self.head = RMSNorm(), nn.Linear(WIDTH, 8)

    def forward(self, ids):
        chosen = self.block_choice(self.embed_choice(ids))[..., :1] > 0
        return self.head(self.norm(self.block(self.embed(ids)))) * chosen


def residual(block, given=None):
    given = given or call()
    return find_residual(StreamBench(block.eval(), given), flow(block, given))


def places(sites):
    return {(site.parameter, site.dim) for site in sites}


def test_what_reads_the_norm_reads_the_stream_and_what_is_added_writes_it():
    found = residual(PreNorm(RMSNorm(), Attention()))

    assert places(found.readers) == {(f"inner.{name}_proj.weight", 1) for name in "qkv"}
    assert places(found.writers) == {("inner.o_proj.weight", 0), ("inner.o_proj.bias", 0)}
    assert [pair.producer for pair in found.norms] == ["norm"]
    assert (found.width, found.keeps_ones) == (WIDTH, False)


def test_layers_whose_weights_lie_on_their_sides_are_rotated_along_the_other_dimension():
    found = residual(PreNorm(RMSNorm(), MLP(F.gelu, Conv1D)))

    assert places(found.readers) == {("inner.fc1.weight", 0)}
    assert places(found.writers) == {("inner.fc2.weight", 1), ("inner.fc2.bias", 0)}


def test_norms_that_subtract_the_mean_want_a_rotation_that_keeps_ones():
    assert residual(Parallel()).keeps_ones


def test_routers_read_the_stream_and_experts_that_no_token_reached_are_rotated_as_the_others():
    found = residual(PreNorm(RMSNorm(), Experts(experts=6)), call(rows=1, tokens=4))

    assert ("inner.router", 1) in places(found.readers)
    for i in range(6):
        assert (f"inner.experts.{i}.up_proj.weight", 1) in places(found.readers)
        assert (f"inner.experts.{i}.down_proj.weight", 0) in places(found.writers)


@pytest.mark.parametrize(
    "block",
    [PreNorm(RMSNorm(offset=1), Attention()), PreNorm(nn.LayerNorm(WIDTH), Attention(fused=True)), Parallel()],
    ids=["1+w", "means", "parallel"],
)
def test_a_block_whose_parameters_are_rotated_maps_a_rotated_stream_to_the_rotated_output(block):
    for name, p in block.named_parameters():
        if "norm" in name:
            nn.init.uniform_(p, 0.5, 2.0)
    found, (x,) = residual(block), call().args
    before, block = block.double()(x.double()), block.double()
    rotation = rotation_of(WIDTH, "hadamard", keeps_ones=found.keeps_ones)

    foldings = [Folding(pair, gain(block, pair)) for pair in found.norms]
    rotate(block, foldings, [(site, rotation) for site in found.sites])

    after = block(rotation.apply(x.double()))
    assert (after - rotation.apply(before)).norm() < 1e-6 * before.norm()


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Sandwich(), r"inner\.down_proj adds to the residual stream goes through post_norm first"),
        (PreNorm(RMSNorm(), Attention(), residual_behind_norm=True), "residual stream"),
        (PreNorm(RMSNorm(), Experts(router="buffer")), r"inner\.experts.* reads other tokens: what chooses them"),
        (Gated(), "residual stream"),
    ],
    ids=["sandwich norms", "residual behind the norm", "router without a weight", "gate"],
)
def test_what_a_rotation_would_change_is_refused_with_the_reason(block, reason):
    with pytest.raises(ModelError, match=reason):
        residual(block, call(tokens=64))


def test_around_the_blocks_the_stream_of_every_block_is_looked_at():
    blocks, ids = ["block", "block_choice"], torch.arange(8)[None]
    around = shell(TwoStreams().eval(), blocks, dict.fromkeys(blocks, torch.zeros(1, 8, WIDTH)))
    bench = StreamBench(around, Call((ids,), {}))

    with pytest.raises(ModelError, match="a rotation changes the output"):
        find_residual(bench, probe(bench, {}))
