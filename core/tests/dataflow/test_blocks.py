import pytest
import torch
import zoo
from handmade import Attention, GatedMLP, PreNorm, RMSNorm
from torch import nn

from coldpress.dataflow import capture, describe, fold, shared_parameters, token_batch
from coldpress.dataflow.blocks import block_lists, find_blocks
from coldpress.errors import ModelError, TargetError


class Model(nn.Module):
    """An embedding, four blocks of two kinds, a head."""

    def __init__(self, tie=False):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layers = nn.ModuleList([PreNorm(RMSNorm(), GatedMLP() if i % 2 else Attention()) for i in range(4)])
        self.head = nn.Linear(16, 50)
        if tie:
            self.layers[3].inner.down_proj.weight = self.layers[1].inner.down_proj.weight

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_the_blocks_are_the_heaviest_repeated_list_and_alike_ones_share_a_kind():
    blocks = find_blocks(Model())

    assert [(b.name, b.kind) for b in blocks] == [("layers.0", 0), ("layers.1", 1), ("layers.2", 0), ("layers.3", 1)]


def test_a_class_that_must_not_be_split_beats_weight():
    model = nn.ModuleDict({"tower": nn.ModuleList([nn.Linear(99, 99)]), "text": nn.ModuleList([nn.Linear(2, 2)] * 2)})
    model._no_split_modules = ["Bilinear"]
    heavy = [b.name for b in find_blocks(model)]
    model["text"][0] = GatedMLP()
    model._no_split_modules = ["GatedMLP"]

    assert heavy == ["tower.0"]
    assert find_blocks(model)[0].name == "text.0"


@pytest.mark.parametrize(
    "targets", [["PreNorm"], [r"re:layers\.\d+$"], ["layers.0", "layers.1", "layers.2", "layers.3"]]
)
def test_blocks_can_be_named(targets):
    assert len(find_blocks(Model(), targets)) == 4


def test_a_name_that_matches_nothing_gets_a_suggestion():
    with pytest.raises(TargetError, match="did you mean 'PreNorm'"):
        find_blocks(Model(), ["PreNrm"])


def test_a_model_without_blocks_says_how_to_name_them():
    with pytest.raises(ModelError, match="sequential_targets"):
        block_lists(nn.Linear(2, 2))


def test_capture_stops_at_the_last_wanted_block():
    model = Model()
    model.layers[1].forward = None  # would fail if it were called

    calls = capture(model, ["layers.0", "layers.1"], token_batch(model))

    assert calls["layers.1"].args[0].shape == (2, 12, 16)


def test_a_batch_that_the_model_refuses_is_named():
    with pytest.raises(ModelError, match="pixel"):
        capture(Model(), ["layers.0"], {"pixel": torch.zeros(2)})


def test_a_model_is_described_as_plain_data():
    found = describe(Model()).to_dict()

    assert (found["prologue"], found["epilogue"]) == (["embed"], ["head"])
    assert [k["blocks"] for k in found["kinds"]] == [["layers.0", "layers.2"], ["layers.1", "layers.3"]]
    assert found["kinds"][0]["dataflow"]["pairs"][1]["consumers"] == {"inner.o_proj": [[0, 3], [0, 7], [4, 7]]}


def test_a_model_without_data_is_described_alike():
    with torch.device("meta"):
        empty = Model()

    with_data, without = describe(Model()).to_dict(), describe(empty).to_dict()
    for found in (with_data, without):
        for kind in found["kinds"]:
            for pair in kind["dataflow"]["pairs"]:
                assert pair.pop("certificate") < 1e-12
    assert with_data == without
    assert all(p.is_meta for p in empty.parameters())


def test_a_pair_with_a_parameter_that_another_block_owns_is_refused():
    model = Model(tie=True)

    assert shared_parameters(model, "layers.1") == {"inner.down_proj.weight": frozenset({"layers.3"})}
    kind = describe(model).kinds[1].dataflow
    assert "shared with layers.3" in kind.refused["inner.up_proj"]


def test_transformers_on_the_meta_device_need_only_their_classes():
    with torch.device("meta"):
        empty = zoo.AutoModelForCausalLM.from_config(zoo.configuration("gemma2"))

    found = describe(empty)
    assert [len(k.dataflow.pairs) for k in found.kinds] == [4, 4]


def test_a_whole_stack_of_experts_takes_one_scale_per_expert():
    model = zoo.build("mixtral")
    pair = next(p for p in describe(model).kinds[0].dataflow.pairs if p.kind == "experts")
    before = zoo.logits(model, zoo.token_batch())
    for name in ("model.layers.0", "model.layers.1"):
        fold(model, pair.within(name), torch.rand(4, len(pair.rows)) + 0.5)

    torch.testing.assert_close(zoo.logits(model, zoo.token_batch()), before)
