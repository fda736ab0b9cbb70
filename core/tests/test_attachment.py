"""Attachments: they act, go wherever their model goes, leave no trace, and are recorded exactly."""

import copy
import json
import pickle
from typing import ClassVar

import pytest
import torch
from attrs import evolve, field, frozen
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from coldpress.attachment import Attachment, attach, attachments_on, copy_attachments, detach, every_attachment
from coldpress.attention import attention_modules
from coldpress.bases.kv_cache import KVCache
from coldpress.bases.quantized_inputs import QuantizedInputs
from coldpress.errors import BrokenPluginError, ModelError, UnknownPluginError
from coldpress.testing.models import batches, logits, tiny_conv1d, tiny_llama
from coldpress.testing.trace import differences, trace_of

ATTENTION, DOWN = "model.layers.0.self_attn", "model.layers.1.mlp.down_proj"


@frozen(kw_only=True)
class Doubled(Attachment):
    kind: ClassVar[str] = "doubled"
    times: float = 2.0

    def inputs(self, module, x):
        return self.times * x


@frozen(kw_only=True)
class Shifted(Attachment):
    kind: ClassVar[str] = "shifted"

    def buffers(self):
        return ("shift",)

    def outputs(self, module, y):
        return y + module.shift


@frozen(kw_only=True)
class NoKeys(Attachment):
    kind: ClassVar[str] = "no_keys"

    def attention(self, module, states):
        return evolve(states, keys=0 * states.keys)


@frozen(kw_only=True, eq=False)
class Kept(Attachment):
    kind: ClassVar[str] = "kept"
    scale: torch.Tensor
    names: list[str] = field(factory=list)

    def inputs(self, module, x):
        return x


def everywhere(model):
    """The model with an attachment of each point, and what it then says."""
    attach(model.get_submodule(ATTENTION), NoKeys())
    attach(model.get_submodule(DOWN), Doubled())
    attach(model.lm_head, Shifted(), {"shift": torch.arange(model.lm_head.out_features) / 10})
    return model, logits(model, batches(rows=2))


def test_each_acts_where_it_says():
    layer = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    expected = layer(2 * x) + 1

    attach(layer, Doubled())
    attach(layer, Shifted(), {"shift": torch.ones(2)})

    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(input=x), expected)


def test_only_the_first_tensor_of_several_outputs_is_changed():
    module = nn.MultiheadAttention(4, 2, batch_first=True)
    x = torch.randn(1, 3, 4)
    first, weights = module(x, x, x)

    attach(module, Shifted(), {"shift": torch.ones(4)})

    found = module(x, x, x)
    torch.testing.assert_close(found[0], first + 1)
    torch.testing.assert_close(found[1], weights)


@pytest.mark.parametrize(
    "moved",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), lambda model: model.to("cpu", torch.float64)],
    ids=["deepcopy", "pickle", "to"],
)
def test_they_go_wherever_their_model_goes(moved):
    model, expected = everywhere(tiny_llama())

    other = moved(model)

    torch.testing.assert_close(logits(other, batches(rows=2)), expected)
    assert [name for name, _, _ in every_attachment(other.named_modules())] == [ATTENTION, DOWN, "lm_head"]


def test_a_copy_is_independent():
    model, expected = everywhere(tiny_llama())
    other = copy.deepcopy(model)

    for name in (ATTENTION, DOWN, "lm_head"):
        for attachment in attachments_on(other.get_submodule(name)):
            detach(other.get_submodule(name), attachment.kind)

    assert torch.equal(logits(model, batches(rows=2)), expected)
    assert torch.equal(logits(other, batches(rows=2)), logits(tiny_llama(), batches(rows=2)))


def test_another_process_knows_what_attention_a_pickled_model_asks_for():
    model, expected = everywhere(tiny_llama())
    data = pickle.dumps(model)
    for name in [name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if name.startswith("coldpress_")]:
        del ALL_ATTENTION_FUNCTIONS._global_mapping[name]  # as it is where nothing was attached

    assert torch.equal(logits(pickle.loads(data), batches(rows=2)), expected)


def test_another_attention_kernel_may_be_chosen_afterwards():
    model, expected = everywhere(tiny_llama())

    model.set_attn_implementation("eager")

    torch.testing.assert_close(logits(model, batches(rows=2)), expected)
    assert "coldpress" not in json.dumps(model.config.to_dict())


def test_taking_them_off_leaves_no_trace():
    model = tiny_llama()
    before, config = trace_of(model), model.get_submodule(ATTENTION).config

    everywhere(model)
    for name, module, attachment in list(every_attachment(model.named_modules())):
        detach(model.get_submodule(name), attachment.kind)
        detach(module, "nothing of this kind")

    assert differences(before, trace_of(model)) == []
    assert model.get_submodule(ATTENTION).config is config
    assert not any("coldpress" in key for module in model.modules() for key in vars(module))


def test_one_of_the_same_kind_replaces_the_earlier_one():
    layer = nn.Linear(2, 2)

    for times in (2.0, 3.0):
        attach(layer, Doubled(times=times))
        attach(layer, Shifted(), {"shift": torch.full((2,), times)})

    assert attachments_on(layer) == (Doubled(times=3.0), Shifted())
    torch.testing.assert_close(layer(torch.ones(2)), layer.weight.sum(1) * 3 + layer.bias + 3)


def test_what_belongs_to_a_scheme_acts_last():
    layer = nn.Linear(8, 2)
    attach(layer, QuantizedInputs(args={"num_bits": 8, "strategy": "tensor", "dynamic": True}))
    attach(layer, Doubled())

    assert [one.kind for one in attachments_on(layer)] == ["doubled", "quantized_inputs"]


def test_they_are_copied_to_another_model():
    model, expected = everywhere(tiny_llama())
    other = tiny_llama()

    copy_attachments(model, other)

    assert torch.equal(logits(other, batches(rows=2)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int8])
def test_a_record_is_exact(dtype):
    one = Kept(scale=torch.tensor([[1 / 3, -7.25]]).to(dtype), names=["a", "b"])

    other = Kept.from_record(json.loads(json.dumps(one.to_record())))

    assert torch.equal(other.scale, one.scale)
    assert (other.scale.dtype, other.names) == (dtype, one.names)


def test_the_schemes_of_a_record_come_back():
    for one in (
        KVCache(args={"num_bits": 8, "type": "float", "strategy": "attn_head"}, queries=True),
        QuantizedInputs(args={"num_bits": 4, "strategy": "group", "group_size": 32, "dynamic": True}),
    ):
        other = type(one).from_record(json.loads(json.dumps(one.to_record())))

        assert other.args == one.args
        assert other.to_record() == one.to_record()


@pytest.mark.parametrize(
    ("attachment", "buffers", "said"),
    [
        (Shifted(), {}, "names the buffers"),
        (Doubled(), {"shift": torch.ones(1)}, "names the buffers"),
        (Attachment(), {}, "must have a kind, and override"),
    ],
)
def test_what_cannot_act_is_refused(attachment, buffers, said):
    with pytest.raises(BrokenPluginError, match=said):
        attach(nn.Linear(2, 2), attachment, buffers)


def test_a_module_without_attention_cannot_have_its_attention_changed():
    layer = nn.Linear(2, 2)

    with pytest.raises(ModelError, match="a Linear has no attention that transformers dispatches"):
        attach(layer, NoKeys())

    assert attachments_on(layer) == ()


def test_a_kind_that_is_not_installed_is_named():
    from coldpress.attachment import attachment_class

    assert attachment_class("kv_cache") is KVCache
    with pytest.raises(UnknownPluginError, match="no attachment is called 'kv_cash'; did you mean 'kv_cache'"):
        attachment_class("kv_cash")


def test_attention_is_found_by_what_its_forward_looks_up():
    found = [
        [name for name, _ in attention_modules(dict(model.named_modules()))] for model in (tiny_llama(), tiny_conv1d())
    ]

    assert found == [
        [f"model.layers.{i}.self_attn" for i in range(2)],
        [f"transformer.h.{i}.attn" for i in range(2)],
    ]
