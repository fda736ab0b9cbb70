import pytest
import torch
from handmade import MLP, WIDTH, Attention, Conv1D, Experts, GatedMLP, Parallel, PreNorm, RMSNorm, call, flow, pairs
from torch import nn
from torch.nn import functional as F

from coldpress.dataflow import fold
from coldpress.dataflow.inputs import distinct_inputs
from coldpress.dataflow.pair import runs
from coldpress.errors import ModelError


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(
    ("norm", "offset"),
    [(RMSNorm(), 0), (RMSNorm(offset=1), 1), (nn.LayerNorm(WIDTH), 0), (nn.LayerNorm(WIDTH, bias=False), 0)],
    ids=["w", "1+w", "w and bias", "w of a layer norm"],
)
def test_a_norm_absorbs_the_scale_of_all_its_readers(norm, offset):
    found = pairs(PreNorm(norm, Attention()))["norm"]

    assert found.consumers == ("inner.q_proj", "inner.k_proj", "inner.v_proj")
    assert (found.kind, found.offset) == ("norm", offset)
    assert found.certificate < 1e-12


def test_grouped_query_attention_maps_each_head_to_its_group():
    found = pairs(Attention())["v_proj"]

    assert found.consumers == ("o_proj",)
    assert found.channels("o_proj").tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]


def test_only_the_v_rows_of_a_fused_layer_absorb():
    found = pairs(Attention(fused=True))["qkv_proj"]

    assert found.rows.tolist() == list(range(24, 32))
    assert found.channels("o_proj").tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]
    assert not found.whole


def test_only_the_up_rows_of_a_fused_layer_absorb():
    found = pairs(GatedMLP(fused=True))["gate_up_proj"]

    assert runs(found.rows) == [[24, 47]]
    assert found.consumers == ("down_proj",)


def test_rows_of_a_wide_fused_layer_are_found_by_halving():
    block = GatedMLP(fused=True, inner=700)

    assert runs(pairs(block)["gate_up_proj"].rows) == [[700, 1399]]


def test_up_absorbs_and_the_gate_behind_a_silu_does_not():
    assert pairs(GatedMLP()).keys() == {"up_proj"}


@pytest.mark.parametrize(("activation", "degree"), [(F.relu, 1), (F.leaky_relu, 1), (lambda x: F.relu(x).square(), 2)])
def test_positively_homogeneous_activations_let_a_scale_through(activation, degree):
    found = pairs(MLP(activation))["fc1"]

    assert found.degree == degree
    assert found.certificate < 1e-12


@pytest.mark.parametrize("activation", [F.gelu, F.silu, torch.tanh, lambda x: F.relu6(x * 0.01)])
def test_other_activations_do_not(activation):
    assert pairs(MLP(activation)) == {}


def test_a_clamp_that_tiny_inputs_never_reach_is_refused():
    found = flow(GatedMLP(limit=50.0))

    assert not found.pairs
    assert "up_proj" in found.refused


def test_conv1d_is_a_linear_layer_with_its_weight_on_its_side():
    found = pairs(PreNorm(nn.LayerNorm(WIDTH), MLP(F.relu, Conv1D)))

    assert found.keys() == {"norm", "inner.fc1"}
    assert found["norm"].members[0].site.dim == 0
    assert found["inner.fc1"].sites[0].dim == 1


def test_parallel_attention_and_mlp_share_one_norm_and_one_input():
    found = flow(Parallel())

    assert found.inputs[0] == ("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    assert next(p for p in found.pairs if p.producer == "norm").consumers == found.inputs[0]


def test_a_norm_that_feeds_the_residual_stream_is_refused_with_the_reason():
    found = flow(PreNorm(RMSNorm(), Attention(), residual_behind_norm=True))

    assert "norm" not in {p.producer for p in found.pairs}
    assert "inner.q_proj" in found.refused["norm"]
    assert "norm" in found.unpaired["inner.q_proj"]


def test_a_router_that_can_take_the_scale_back_is_a_consumer():
    found = pairs(PreNorm(RMSNorm(), Experts()), call(tokens=64))["norm"]

    assert "inner.router" in found.consumers
    assert {f"inner.experts.{i}.up_proj" for i in range(4)} < set(found.consumers)


def test_a_norm_that_feeds_a_router_without_a_weight_of_its_own_is_refused():
    found = flow(PreNorm(RMSNorm(), Experts(router="buffer")), call(tokens=64))

    assert "norm" in found.refused


def test_tokens_scaled_by_their_routers_score_still_show_the_experts():
    found = pairs(PreNorm(RMSNorm(), Experts(score_input=True)), call(tokens=64))["norm"]

    assert "inner.experts.2.gate_proj" in found.consumers


@pytest.mark.parametrize("dense", [True, False])
def test_experts_that_no_token_chose_are_inferred_from_siblings(dense):
    block = PreNorm(RMSNorm(), Experts(experts=12, dense=dense))
    found = flow(block, call(rows=1, tokens=4))

    assert found.unreached
    assert len({pair.producer for pair in found.pairs}) == len(found.pairs)
    norm = next(p for p in found.pairs if p.producer == "norm")
    assert {f"inner.experts.{i}.up_proj" for i in range(12)} < set(norm.consumers)
    assert {f"inner.experts.{i}.up_proj" for i in range(12)} < {p.producer for p in found.pairs}


def test_a_silent_layer_without_a_twin_makes_its_possible_producer_refused():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.always, self.sometimes = RMSNorm(), nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)

        def forward(self, x, flag=False):
            x = self.norm(x)
            return self.sometimes(x) if flag else self.always(x)

    found = flow(Branch())

    assert found.unreached == ("sometimes",)
    assert "sometimes" in found.refused["norm"]


def test_a_block_that_never_answers_the_same_is_refused():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            return self.inner(x) + torch.randn_like(x)

    with pytest.raises(ModelError, match="differ"):
        flow(Noisy())


def test_probing_leaves_the_block_as_it_was():
    block = PreNorm(RMSNorm(), Attention()).to(torch.bfloat16)
    before = {n: p.clone() for n, p in block.named_parameters()}
    flow(block)

    assert all(torch.equal(p, before[n]) and p.dtype == torch.bfloat16 for n, p in block.named_parameters())


def test_a_block_without_data_is_probed_with_random_weights():
    with torch.device("meta"):
        block = PreNorm(RMSNorm(), Attention())

    assert pairs(block).keys() == {"norm", "inner.v_proj"}
    assert all(p.is_meta for p in block.parameters())


def test_views_of_one_tensor_are_one_input():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(WIDTH, 4) for _ in range(3))

        def forward(self, x):
            return self.a(x), self.b(x.view(-1, WIDTH)), self.c(x + 0)

    assert distinct_inputs(Views(), call()) == (("a", "b"), ("c",))


def test_every_certificate_holds_for_the_block_itself():
    block = Parallel().double()
    x = call().args[0].double()
    before = block(x)
    for pair in flow(block).pairs:
        fold(block, pair, torch.rand(len(pair.rows), dtype=torch.float64) + 0.5)

    torch.testing.assert_close(block(x), before, rtol=1e-10, atol=1e-12)
