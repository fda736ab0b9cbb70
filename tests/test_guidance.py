"""Guidance: modifiers whose tokens count by the model's loss, streamed, in memory and interrupted."""

import json

import pytest
import torch

from coldpress import CalibrationError, SchemeError, oneshot
from coldpress.calibration.gradient_store import GradientStore
from coldpress.plugin import GUIDANCE, TokenWeight
from coldpress.run import reverse
from coldpress.testing.interrupt import interrupted
from coldpress.testing.mixtures import tiny_mixture
from coldpress.testing.models import batches, tiny_llama, tiny_tokenizer

QUANTIZE = {"scheme": "W4A16", "group_size": 32, "ignore": ["lm_head"]}
RECIPES = {
    "gptq": [{"GPTQModifier": {**QUANTIZE, "guidance": "sampled"}}],
    "groups": [{"GPTQModifier": {**QUANTIZE, "guidance": "sampled", "guidance_groups": 3}}],
    "awq": [{"AWQModifier": {"guidance": "data"}}, {"GPTQModifier": {**QUANTIZE, "guidance": "data"}}],
    "sparsegpt": [{"SparseGPTModifier": {"sparsity": 0.5, "guidance": "sampled"}}],
    "wanda": [{"WandaModifier": {"mask_structure": "2:4", "guidance": "data"}}],
}


def compress(model, output, recipe, **settings):
    return oneshot(
        model,
        json.dumps({"modifiers": RECIPES[recipe] if isinstance(recipe, str) else recipe}),
        output_dir=None if output is None else str(output),
        dataset=batches(),
        quiet=True,
        **settings,
    )


def weights(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    tiny_llama(hidden=64).save_pretrained(path, max_shard_size="300KB")
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "name", ["gptq", *(pytest.param(name, marks=pytest.mark.slow) for name in ("groups", "awq", "sparsegpt", "wanda"))]
)
def test_streamed_and_interrupted_runs_give_the_bytes_of_one_in_memory(source, tmp_path, name, monkeypatch):
    compress(tiny_llama(hidden=64), tmp_path / "memory", name)
    with interrupted(2):
        compress(str(source), tmp_path / "streamed", name)
    monkeypatch.setattr(reverse.ReverseSweep, "run", lambda *_: pytest.fail("the reverse sweep was done again"))
    compress(str(source), tmp_path / "streamed", name)

    assert weights(tmp_path / "streamed") == weights(tmp_path / "memory")
    assert not list(tmp_path.glob("*.partial"))


def test_guidance_changes_what_is_chosen():
    plain, guided = (
        compress(tiny_llama(), None, [{"GPTQModifier": {**QUANTIZE, "guidance": guidance}}])
        for guidance in (None, "sampled")
    )

    down = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(plain.state_dict()[down], guided.state_dict()[down])


def test_rows_in_groups_are_those_of_the_layer_where_tokens_count_alike(monkeypatch):
    def alike(self, values):
        return {tokens: (torch.ones_like(one), where) for tokens, (one, where) in values[0].squares.items()}

    monkeypatch.setattr(TokenWeight, "weights", alike)
    plain, grouped = (compress(tiny_llama(), None, recipe).state_dict() for recipe in ("gptq", "groups"))

    assert all(torch.equal(weight, grouped[name]) for name, weight in plain.items())


def test_each_group_of_rows_is_solved_as_its_own_outputs_ask(monkeypatch):
    """Of q, k and v, 64 + 32 + 32 rows: the last group alone sees other weights of tokens."""
    once = TokenWeight.weights

    def odd(self, values):
        found = once(self, values)
        return {tokens: (one.flip(0) if self.group == 1 else one, where) for tokens, (one, where) in found.items()}

    recipe = [{"GPTQModifier": {**QUANTIZE, "guidance": "data", "guidance_groups": 2}}]
    plain = compress(tiny_llama(), None, recipe).state_dict()
    monkeypatch.setattr(TokenWeight, "weights", odd)
    turned = compress(tiny_llama(), None, recipe).state_dict()

    for name in ("q_proj", "k_proj", "v_proj"):  # of the first block: the others read other inputs
        before, after = (found[f"model.layers.0.self_attn.{name}.weight"] for found in (plain, turned))
        half = len(before) // 2
        assert torch.equal(before[:half], after[:half])
        assert not torch.equal(before[half:], after[half:])


def test_a_layer_with_fewer_rows_than_groups_is_solved_in_as_many():
    recipe = [{"GPTQModifier": {**QUANTIZE, "ignore": [], "guidance": "sampled", "guidance_groups": 40}}]
    model = compress(tiny_llama(), None, recipe)

    codes = {name: int(weight.count_nonzero()) for name, weight in model.state_dict().items() if "k_proj" in name}
    assert codes
    assert all(codes.values())


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"guidance_groups": 2}, "name guidance too"),
        ({"guidance_groups": 0, "guidance": "data"}, "guidance_groups"),
        ({"guidance_groups": 2, "guidance": "data", "scheme": "FP8"}, "strategy 'tensor'"),
    ],
)
def test_groups_that_cannot_be_are_refused(settings, match):
    with pytest.raises(Exception, match=match):
        compress(tiny_llama(), None, [{"GPTQModifier": {"scheme": "W4A16", "ignore": ["lm_head"], **settings}}])


def test_groups_of_rows_that_share_the_scale_of_a_quantizer_before_are_refused():
    recipe = [
        {"QuantizationModifier": {"scheme": "FP8", "ignore": ["lm_head"]}},
        {"GPTQModifier": {"ignore": ["lm_head"], "guidance": "data", "guidance_groups": 2}},
    ]
    with pytest.raises(SchemeError, match="q_proj has strategy 'tensor'"):
        compress(tiny_llama(), None, recipe)


def test_data_without_a_label_are_refused():
    recipe = json.dumps({"modifiers": [{"GPTQModifier": {**QUANTIZE, "guidance": "data"}}]})

    with pytest.raises(CalibrationError, match="no token of the data has a label"):
        oneshot(tiny_llama(), recipe, dataset=[{"input_ids": torch.tensor([[5]])}], quiet=True)


def test_a_seed_may_be_larger_than_what_labels_are_numbered_by():
    compress(tiny_llama(), None, "gptq", seed=2**32)


def test_what_was_found_of_experts_follows_them_when_others_are_dropped():
    store, statistic = GradientStore(), TokenWeight()
    for number in range(4):
        store.values[f"mlp.experts.{number}.up_proj", statistic] = number
    store.values["mlp.gate", statistic] = "router"

    store.keep_experts({"mlp.experts": [1, 3]})

    assert {name: value for (name, _), value in store.values.items()} == {
        "mlp.experts.0.up_proj": 1,
        "mlp.experts.1.up_proj": 3,
        "mlp.gate": "router",
    }


def test_a_run_that_drops_experts_tells_what_gradients_were_found_of(monkeypatch):
    told = []
    monkeypatch.setattr(GradientStore, "keep_experts", lambda store, kept: told.append(kept))

    model = tiny_mixture("qwen3_moe", experts=8)
    compress(model, None, [{"REAPPruningModifier": {"keep": 4}}, *RECIPES["gptq"]])

    assert [{name: len(some) for name, some in kept.items()} for kept in told] == [
        {f"model.layers.{number}.mlp.experts": 4 for number in (0, 1)}
    ]


def test_a_pipeline_without_backwards_is_refused():
    with pytest.raises(CalibrationError, match="GPTQModifier needs gradients .* sequential"):
        compress(tiny_llama(), None, "gptq", pipeline="layer_sequential")


def test_other_labels_are_refused():
    with pytest.raises(Exception, match="guidance"):
        compress(tiny_llama(), None, [{"GPTQModifier": {**QUANTIZE, "guidance": "labels"}}])
    assert GUIDANCE == (None, "sampled", "data")


@pytest.mark.parametrize("all_experts", [True, False])
def test_experts_are_guided_by_the_tokens_that_they_had(all_experts):
    model = tiny_mixture("qwen3_moe")
    compress(
        model, None, [{"GPTQModifier": {**QUANTIZE, "guidance": "sampled"}}], moe_calibrate_all_experts=all_experts
    )

    assert all(torch.isfinite(weight).all() for weight in model.parameters())
