"""The real model, compressed: the library unpacks the weights that we return, transformers computes our logits."""

import json
from copy import deepcopy

import pytest
import torch

pytest.importorskip("compressed_tensors", reason="our checkpoints are unpacked with this library")

from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from transformers import AutoModelForCausalLM

from coldpress import load_model, load_tokenizer, oneshot, plan
from coldpress.calibration.short import load
from coldpress.plugin import CheckpointReader
from coldpress_quantization import QuantizationModifier

pytestmark = [pytest.mark.slow, pytest.mark.demo]

FP8 = {"num_bits": 8, "type": "float"}
TOKEN = {**FP8, "strategy": "token", "dynamic": True}


def in_full(weights, inputs=None):
    return {"config_groups": {"all": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}}


SCHEMES = {
    "W4A16 group 64": {"scheme": "W4A16", "group_size": 64},
    "W4A16 group 32": {"scheme": "W4A16", "group_size": 32},
    "W4A16 channel": {"scheme": "W4A16", "group_size": -1},
    "W4A16 asymmetric group 64": {"scheme": "W4A16_ASYM", "group_size": 64},
    "W4A16 asymmetric channel": {"scheme": "W4A16_ASYM", "group_size": -1},
    "W8A16 group 64": {"scheme": "W8A16", "group_size": 64},
    "W8A8": {"scheme": "W8A8"},
    "FP8 channel": {"scheme": "FP8_DYNAMIC"},
    "FP8 tensor": in_full({**FP8, "strategy": "tensor"}, TOKEN),
    "FP8 block": in_full({**FP8, "strategy": "block", "block_structure": [64, 64]}, TOKEN),
}


@pytest.fixture(scope="module")
def original():
    return load_model("smollm2", dtype="bfloat16", device="cpu")


@pytest.fixture(scope="module")
def tokens(original):
    text = load("held_out")[0]["text"]
    return load_tokenizer("smollm2", original)(text, return_tensors="pt").input_ids[:, :128]


@pytest.fixture(params=SCHEMES, scope="module", ids=lambda name: name.replace(" ", "_"))
def case(request, original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compressed") / "out"
    recipe = QuantizationModifier(**SCHEMES[request.param], ignore=["lm_head"])
    return oneshot(deepcopy(original), recipe, output_dir=folder, quiet=True), folder


def test_the_library_unpacks_the_weights_of_the_model_in_memory_bit_for_bit(case):
    model, folder = case
    reader = CheckpointReader(folder)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert QuantizationConfig.model_validate(config).format == config["format"]
    (group,) = config["config_groups"].values()
    scheme = QuantizationScheme.model_validate(group)
    compressor = BaseCompressor.get_value_from_registry(group["format"])

    stored = {name: reader.get(name) for name in reader.names()}
    layers = [name.removesuffix(".weight_scale") for name in stored if name.endswith(".weight_scale")]
    different = []
    for layer in layers:
        parts = {name.removeprefix(f"{layer}."): x for name, x in stored.items() if name.startswith(f"{layer}.")}
        restored = compressor.decompress(parts, scheme)["weight"]
        if not torch.equal(restored, model.get_submodule(layer).weight.data):
            different.append(layer)

    assert len(layers) == 210
    assert different == []


@torch.no_grad()
def test_transformers_computes_the_logits_of_the_model_in_memory(case, tokens):
    model, folder = case
    reloaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    ours, theirs = model(tokens).logits.float(), reloaded(tokens).logits.float()

    # Weights are equal, so what is left is the rounding of inputs in bfloat16, 2^-8 of a logit here and there.
    assert (ours - theirs).abs().mean() <= 2**-8 * ours.abs().mean()
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() >= 0.98


def test_a_plan_counts_what_a_source_decodes_in_the_dtype_of_the_model():
    planned = plan("smollm2", QuantizationModifier(scheme="W8A8", ignore=["lm_head"]), quiet=True)

    assert planned.before == 2 * planned.weights  # bfloat16; the source gives float32
