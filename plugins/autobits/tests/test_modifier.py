"""AutoBitsModifier: within its target to the byte, fused layers together, replayed by a plain recipe."""

import json

import pytest
import torch
from safetensors import safe_open

from coldpress import SchemeError, oneshot
from coldpress.testing.interrupt import interrupted
from coldpress.testing.mixtures import tiny_mixture
from coldpress.testing.models import batches, logits, tiny_llama, tiny_tokenizer

QUANTIZE = {"scheme": "W4A16", "group_size": 32, "ignore": ["lm_head"]}


def recipe(quantizer="QuantizationModifier", weight_observer=None, **settings):
    bits = {"target_bits": 5, "candidates": [3, 4, 8], "group_size": 32, "ignore": ["lm_head"], "num_check_tokens": 64}
    quantize = {**QUANTIZE, "weight_observer": weight_observer}
    return json.dumps({"modifiers": [{"AutoBitsModifier": {**bits, **settings}}, {quantizer: quantize}]})


def compress(text, output=None, model=None, **settings):
    where = None if output is None else str(output)
    return oneshot(model or tiny_llama(), text, dataset=batches(), output_dir=where, quiet=True, **settings)


def sizes(folder):
    """Bytes of every tensor in a checkpoint."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    return {name: tensor.numel() * tensor.element_size() for name, tensor in found.items()}


def groups(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"]


def tensors(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixed") / "out"
    compress(recipe("GPTQModifier", error_feedback=True), path)
    return path


def test_the_average_of_the_file_is_within_the_target(mixed):
    weights = sum(weight.numel() for name, weight in tiny_llama().state_dict().items() if "_proj" in name)
    layers = [size for name, size in sizes(mixed).items() if "_proj.weight" in name]

    assert len({group["weights"]["num_bits"] for group in groups(mixed).values()}) > 1
    assert 4 < 8 * sum(layers) / weights <= 5


def test_a_plain_recipe_replays_the_choice(mixed, tmp_path):
    compress((mixed / "autobits_recipe.yaml").read_text(), tmp_path / "again")

    assert "AutoBits" not in (mixed / "autobits_recipe.yaml").read_text()
    assert tensors(tmp_path / "again") == tensors(mixed)


def test_observers_of_the_quantizer_are_those_of_what_is_chosen_and_of_the_recipe_that_replays_it(tmp_path):
    observed = recipe(num_check_tokens=0, weight_observer="mse")
    for name, text in (("plain", recipe(num_check_tokens=0)), ("observed", observed)):
        compress(text, tmp_path / name)
    compress((tmp_path / "observed" / "autobits_recipe.yaml").read_text(), tmp_path / "again")

    assert tensors(tmp_path / "observed") != tensors(tmp_path / "plain")
    assert tensors(tmp_path / "again") == tensors(tmp_path / "observed")


def test_what_is_rounded_by_itself_is_replayed_by_the_quantizer_that_rounds(tmp_path):
    bits = {"target_bits": 5, "group_size": 32, "ignore": ["lm_head"], "num_check_tokens": 0, "rounds": True}
    compress(json.dumps({"modifiers": [{"AutoBitsModifier": bits}]}), tmp_path / "out")

    replayed = (tmp_path / "out" / "autobits_recipe.yaml").read_text()
    compress(replayed, tmp_path / "again")

    assert "QuantizationModifier" in replayed
    assert tensors(tmp_path / "again") == tensors(tmp_path / "out")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ignore", [["lm_head"], ["lm_head", "re:.*down_proj"]], ids=["all", "some"])
def test_a_size_of_the_whole_file_is_kept_to_the_byte(tmp_path, ignore, tied):
    bits = recipe(target_bits=None, target_size=430_000, ignore=ignore)
    compress(bits, tmp_path / "out", model=tiny_llama(tied=tied))

    total = sum(sizes(tmp_path / "out").values())

    assert total <= 430_000
    text = (tmp_path / "out" / "autobits.md").read_text()
    assert f"{total:,} bytes" in text


def test_a_quantized_head_is_no_longer_the_embedding_that_it_was_tied_to(tmp_path):
    bits = json.loads(recipe(target_bits=None, target_size=430_000))
    bits["modifiers"][1]["QuantizationModifier"] = {**QUANTIZE, "ignore": []}
    compress(json.dumps(bits), tmp_path / "out", model=tiny_llama(tied=True))

    total = sum(sizes(tmp_path / "out").values())

    assert total <= 430_000
    assert f"{total:,} bytes" in (tmp_path / "out" / "autobits.md").read_text()


def test_layers_that_engines_fuse_have_one_scheme(mixed):
    bits = {}
    for group in groups(mixed).values():
        bits.update(dict.fromkeys(group["targets"], group["weights"]["num_bits"]))
    for block in (0, 1):
        attention = f"model.layers.{block}.self_attn"
        assert len({bits.get(f"{attention}.{name}_proj") for name in "qkv"}) == 1
        assert len({bits.get(f"model.layers.{block}.mlp.{name}_proj") for name in ("gate", "up")}) == 1


def test_experts_of_a_block_have_one_scheme(tmp_path):
    compress(recipe(ignore=["lm_head", "re:.*gate$"]), tmp_path / "out", model=tiny_mixture("qwen3_moe"))

    bits = {}
    for group in groups(tmp_path / "out").values():
        bits.update({name: group["weights"]["num_bits"] for name in group["targets"]})
    for block in (0, 1):
        inside = {bit for name, bit in bits.items() if f"layers.{block}." in name and ".experts." in name}
        assert len(inside) <= 1


def test_a_target_that_no_choice_meets_says_the_least():
    with pytest.raises(SchemeError, match=r"target_bits 2.0 is less than .* 4\.\d+ bits a weight"):
        compress(recipe(target_bits=2.0))


def test_one_target_is_needed():
    with pytest.raises(Exception, match="either target_bits"):
        compress(recipe(target_size="1GB"))


def test_something_must_quantize():
    alone = json.dumps({"modifiers": [{"AutoBitsModifier": {"target_bits": 4.5}}]})

    with pytest.raises(SchemeError, match="nothing in the recipe quantizes"):
        compress(alone)


@pytest.mark.parametrize("candidates", [["W4A16"], ["W4A16", True], ["W4A16", "W5A99"]])
def test_candidates_that_are_no_choice_are_refused(candidates):
    with pytest.raises(Exception, match="candidate|preset"):
        compress(recipe(candidates=candidates))


def test_floats_and_rounded_inputs_are_candidates(tmp_path):
    compress(recipe(candidates=["NVFP4", "MXFP4", "FP8_DYNAMIC"], target_bits=5.5), tmp_path / "out")

    assert len(groups(tmp_path / "out")) > 1


def kl_of(model, data):
    """The mean KL from the original, a token of the data."""
    log_p, log_q = (logits(one, data).float().log_softmax(-1) for one in (tiny_llama(), model))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def test_plans_are_compared_with_the_inputs_that_they_round(tmp_path):
    weights, coarse = {"num_bits": 4, "group_size": 32}, {"num_bits": 2, "strategy": "token", "dynamic": True}
    candidates = [{"weights": weights}, {"weights": {**weights, "num_bits": 8}, "input_activations": coarse}]
    compressed = compress(recipe(candidates=candidates, group_size=None, target_bits=9.5), tmp_path / "out")

    rows = [line.split("|") for line in (tmp_path / "out" / "autobits.md").read_text().splitlines()]
    found = [float(row[4]) for row in rows if len(row) == 6 and row[4].strip()[:1].isdigit()]
    assert min(found) == pytest.approx(kl_of(compressed, batches()), rel=0.1)
    assert max(found) > 5 * min(found)  # of plans that round inputs so coarsely


def test_an_interrupted_streamed_run_gives_the_bytes_of_a_whole_one(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    source = str(tmp_path / "model")
    compress(recipe(), tmp_path / "whole", model=source)
    with interrupted(1):
        compress(recipe(), tmp_path / "parts", model=source)
    compress(recipe(), tmp_path / "parts", model=source)

    assert tensors(tmp_path / "parts") == tensors(tmp_path / "whole")


def test_the_expected_cost_is_near_the_measured_one(tmp_path):
    torch.manual_seed(0)
    compress(recipe(), tmp_path / "out")

    rows = [line.split("|") for line in (tmp_path / "out" / "autobits.md").read_text().splitlines()]
    pairs = [
        (float(row[3]), float(row[4])) for row in rows if len(row) == 6 and row[1].strip() in ("fisher", "uniform")
    ]
    assert pairs
    assert all(0.5 < expected / measured < 2 for expected, measured in pairs)
