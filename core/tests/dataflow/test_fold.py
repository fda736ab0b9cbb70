import pytest
import torch
from handmade import MLP, WIDTH, Attention, PreNorm, RMSNorm, call, pairs
from torch.nn import functional as F

from coldpress.dataflow import Pair, fold
from coldpress.dataflow.fold import unfold
from coldpress.errors import ModelError, NumericsError


@pytest.fixture
def block():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PreNorm(RMSNorm(offset=1), Attention()).double()


def scale_for(pair: Pair) -> torch.Tensor:
    return torch.rand(len(pair.rows), generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.5


def test_folding_divides_the_signal_by_the_scale(block):
    pair, x = pairs(block)["norm"], call().args[0].double()
    scale = scale_for(pair)
    before = block.norm(x)
    fold(block, pair, scale)

    torch.testing.assert_close(block.norm(x), before / scale, rtol=1e-6, atol=1e-7)


def test_folding_behind_a_squared_relu_divides_what_the_consumer_reads():
    block = MLP(lambda x: F.relu(x).square()).double()
    pair, x = pairs(block)["fc1"], call().args[0].double()
    scale, before = scale_for(pair), block.activation(block.fc1(x))
    fold(block, pair, scale)

    torch.testing.assert_close(block.activation(block.fc1(x)), before / scale)


def test_unfolding_takes_folding_back(block):
    before = {n: p.clone() for n, p in block.named_parameters()}
    for pair in pairs(block).values():
        fold(block, pair, scale_for(pair))
        unfold(block, pair, scale_for(pair))

    for name, p in block.named_parameters():
        torch.testing.assert_close(p, before[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_powers_of_two_fold_exactly_in_any_dtype(dtype):
    block = Attention().to(dtype)
    pair, before = pairs(block)["v_proj"], block.o_proj.weight.clone()
    fold(block, pair, torch.full((8,), 4.0))

    assert block.o_proj.weight.dtype == dtype
    assert torch.equal(block.o_proj.weight, before * 4)


def test_a_pair_can_be_named_from_the_model(block):
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([block])})
    pair = pairs(block)["norm"].within("layers.0")
    before = block.inner.q_proj.weight.clone()
    fold(model, pair, torch.full((WIDTH,), 2.0))

    assert pair.consumers[0] == "layers.0.inner.q_proj"
    assert torch.equal(block.inner.q_proj.weight, before * 2)


def test_gathering_takes_the_largest_column_of_a_group(block):
    pair = pairs(block)["inner.v_proj"]

    assert pair.gather(torch.arange(16.0), "inner.o_proj").tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    assert pair.spread(torch.arange(8.0), "inner.o_proj").tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf"), float("nan")])
def test_factors_that_cannot_be_taken_back_are_refused(block, bad):
    scale = torch.ones(WIDTH)
    scale[3] = bad

    with pytest.raises(NumericsError, match="positive"):
        fold(block, pairs(block)["norm"], scale)


def test_a_scale_of_another_width_is_refused(block):
    with pytest.raises(ModelError, match=r"\(16,\)"):
        fold(block, pairs(block)["norm"], torch.ones(4))


def test_a_pair_of_another_block_is_refused(block):
    with pytest.raises(ModelError, match="norm"):
        fold(Attention(), pairs(block)["norm"], torch.ones(WIDTH))
