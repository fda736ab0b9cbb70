"""Fused experts become linear layers, and the model says what it said."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from coldpress.experts import LinearExperts, fused_state_dict, linearize_experts, watched_experts
from coldpress.testing.mixtures import MIXTURES, tiny_mixture
from coldpress.testing.models import batches, logits, tiny_llama

DATA = batches(rows=2)
CONVENTIONAL = ["mixtral", "qwen3_moe", "deepseek_v3", "granitemoe", "olmoe"]


def experts_of(model: nn.Module) -> dict[str, LinearExperts]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LinearExperts)}


@pytest.mark.parametrize("kind", MIXTURES)
def test_linear_experts_say_what_fused_ones_said(kind):
    model = tiny_mixture(kind)
    before = logits(model, DATA)

    found = linearize_experts(model)

    assert found.replaced
    assert not found.refused
    torch.testing.assert_close(logits(model, DATA), before, rtol=1e-6, atol=1e-6)


OTHER_SHAPES = ["dbrx", "inkling", "inkling2", "jetmoe"]


@pytest.mark.parametrize("kind", OTHER_SHAPES)
def test_experts_of_other_shapes_say_what_they_said_and_give_their_tensors_back(kind):
    model = tiny_mixture(kind)
    before, fused = logits(model, DATA), {name: tensor.clone() for name, tensor in model.state_dict().items()}

    found = linearize_experts(model)

    assert found.replaced
    assert not found.refused
    with watched_experts(model.modules()):
        torch.testing.assert_close(logits(model, DATA), before, rtol=1e-6, atol=1e-5)
    for name, experts in experts_of(model).items():
        for part, tensor in experts.fused_tensors().items():
            torch.testing.assert_close(tensor, fused[f"{name}.{part}"], rtol=0, atol=0)
    assert fused_state_dict(model).keys() == fused.keys()


def test_one_projection_a_module_is_one_layer_an_expert():
    model = tiny_mixture("jetmoe")
    fused = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    linearize_experts(model)

    for name in ("mlp.input_linear", "mlp.output_linear", "self_attention.experts.input_linear"):
        experts = model.model.layers[1].get_submodule(name)
        assert torch.equal(experts.get_submodule("2.proj").weight, fused[f"model.layers.1.{name}.weight"][2])


def test_matrices_of_all_experts_are_cut_into_theirs():
    model = tiny_mixture("dbrx")
    joint = model.transformer.blocks[0].ffn.experts.mlp.w2.detach().clone()  # [E * M, H]
    linearize_experts(model)

    expert = model.transformer.blocks[0].ffn.experts.get_submodule("3")
    width = expert.down_proj.in_features
    assert torch.equal(expert.down_proj.weight, joint[3 * width :].t())


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("all_experts", [True, False])
def test_watching_experts_changes_no_output(kind, all_experts):
    model = tiny_mixture(kind)
    before = logits(model, DATA)
    linearize_experts(model, all_experts=all_experts)

    with watched_experts(model.modules()):
        during = logits(model, DATA)

    torch.testing.assert_close(during, before, rtol=1e-6, atol=2e-6)
    assert not any(experts.watched for experts in experts_of(model).values())


@pytest.mark.parametrize("kind", MIXTURES)
def test_the_fused_tensors_can_be_had_again(kind):
    model = tiny_mixture(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    linearize_experts(model)

    for name, experts in experts_of(model).items():
        for part, tensor in experts.fused_tensors().items():
            torch.testing.assert_close(tensor, before[f"{name}.{part}"], rtol=0, atol=0)


@pytest.mark.parametrize("kind", CONVENTIONAL)
def test_the_gate_is_told_from_the_other_half(kind):
    model = tiny_mixture(kind)
    fused = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    linearize_experts(model)

    for name, experts in experts_of(model).items():
        joint = fused[f"{name}.gate_up_proj"]  # [E, 2 M, H]
        width = joint.shape[1] // 2
        expert = experts.get_submodule("2")
        assert torch.equal(expert.gate_proj.weight, joint[2, :width])
        assert torch.equal(expert.up_proj.weight, joint[2, width:])
        assert torch.equal(expert.down_proj.weight, fused[f"{name}.down_proj"][2])


def test_interleaved_rows_and_transposed_tensors_are_found():
    model = tiny_mixture("gpt_oss")
    fused = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    linearize_experts(model)

    name, experts = next(iter(experts_of(model).items()))
    expert = experts.get_submodule("1")
    assert torch.equal(expert.gate_proj.weight, fused[f"{name}.gate_up_proj"][1].t()[::2])
    assert torch.equal(expert.up_proj.bias, fused[f"{name}.gate_up_proj_bias"][1][1::2])


def test_fused_weights_are_gone_afterwards():
    model = tiny_mixture("mixtral")
    count = sum(parameter.numel() for parameter in model.parameters())

    linearize_experts(model)

    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert all(parameter.ndim < 3 for parameter in model.parameters())


def test_a_model_without_weights_is_linearized_too():
    model = tiny_mixture("qwen3_moe")
    twin = deepcopy(model).to("meta")

    linearize_experts(model)
    linearize_experts(twin)

    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in model.named_parameters()]
    twin.load_state_dict(model.state_dict(), assign=True)
    twin.model.rotary_emb = model.model.rotary_emb
    torch.testing.assert_close(logits(twin, DATA), logits(model, DATA), rtol=0, atol=0)


def test_a_copy_of_linear_experts_stands_alone():
    model = tiny_mixture("gpt_oss")
    linearize_experts(model)
    twin = deepcopy(model)
    before = logits(model, DATA)

    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()

    torch.testing.assert_close(logits(model, DATA), before, rtol=0, atol=0)


def test_linearizing_twice_is_linearizing_once():
    model = tiny_mixture("olmoe")
    linearize_experts(model)

    assert linearize_experts(model).replaced == ()


def test_a_dense_model_is_left_alone():
    model = tiny_llama()
    names = [name for name, _ in model.named_modules()]

    assert linearize_experts(model).replaced == ()
    assert [name for name, _ in model.named_modules()] == names


class Strange(nn.Module):
    """Experts that square what lies between their projections, with nothing that says so."""

    def __init__(self, *, arguments: int = 3) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(4, 24, 16))
        self.down_proj = nn.Parameter(torch.randn(4, 16, 24))

    def forward(self, x, index, weights):
        out = torch.zeros_like(x)
        for slot in range(index.shape[1]):
            middle = torch.einsum("ti,toi->to", x, self.up_proj[index[:, slot]]) ** 2
            out += torch.einsum("ti,toi->to", middle, self.down_proj[index[:, slot]]) * weights[:, slot, None]
        return out


def test_experts_that_nothing_explains_are_refused_by_name():
    model = nn.ModuleDict({"experts": Strange()})

    found = linearize_experts(model)

    assert list(found.refused) == ["experts"]
    assert "no layout" in found.refused["experts"]
    assert isinstance(model["experts"], Strange)


class ThreeTensors(Strange):
    """Gate and up apart, in an order and with names of their own, the index last."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.v1 = nn.Parameter(torch.randn(4, 16, 24))
        self.w2 = nn.Parameter(torch.randn(4, 24, 16))
        self.w1 = nn.Parameter(torch.randn(4, 16, 24))
        self.activation = nn.GELU()

    def forward(self, x, weights, index):
        out = torch.zeros_like(x)
        for slot in range(index.shape[1]):
            gate = torch.einsum("ti,tio->to", x, self.w1[index[:, slot]])
            up = torch.einsum("ti,tio->to", x, self.v1[index[:, slot]])
            down = torch.einsum("ti,tio->to", self.activation(gate) * up, self.w2[index[:, slot]])
            out = out + down * weights[:, slot, None]
        return out


def test_names_and_orders_of_their_own_are_found_by_computing():
    torch.manual_seed(0)
    model = nn.ModuleDict({"experts": ThreeTensors()})
    x, weights = torch.randn(6, 16), torch.rand(6, 2)
    index = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2], [1, 3]])
    before, gate = model["experts"](x, weights, index), model["experts"].w1[3].t().clone()

    linearize_experts(model)

    torch.testing.assert_close(model["experts"](x, weights, index), before, rtol=1e-5, atol=1e-4)
    assert torch.equal(model["experts"].get_submodule("3").gate_proj.weight, gate)


def test_experts_whose_forward_was_replaced_are_refused_by_name():
    model = nn.ModuleDict({"experts": ThreeTensors()})
    old = model["experts"].forward
    model["experts"].forward = lambda *args: old(*args) / 2

    found = linearize_experts(model)

    assert "forward was replaced on the instance" in found.refused["experts"]
