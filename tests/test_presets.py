"""Every preset of the field on a tiny model, end to end: compressed, written, and read by three readers."""

import json

import pytest
import torch
from attrs import evolve

pytest.importorskip("compressed_tensors", reason="one of the readers")

from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from transformers import AutoModelForCausalLM

from coldpress import SchemeError, load_model, oneshot, preset, preset_names
from coldpress.plugin import CheckpointReader
from coldpress.testing.mixtures import tiny_mixture
from coldpress.testing.models import batches, logits, tiny_llama, tiny_tokenizer
from coldpress_quantization import QuantizationModifier


def compressed(name, folder, **settings):
    """The model in memory after one preset, also written to a folder."""
    modifier = QuantizationModifier(scheme=name, ignore=["lm_head"], **settings)
    data = batches(rows=2) if any(one.needs().data for one in modifier.expand()) else None
    more = {} if data is None else {"dataset": data}
    return oneshot(
        tiny_llama(dtype=torch.bfloat16), modifier, tokenizer=tiny_tokenizer(), output_dir=folder, quiet=True, **more
    )


def layer_tensors(folder, layer):
    reader = CheckpointReader(folder)
    return {name.rpartition(".")[2]: reader.get(name) for name in reader.names() if name.rpartition(".")[0] == layer}


@pytest.mark.parametrize("name", sorted(set(preset_names()) - {"UNQUANTIZED"}))
def test_three_readers_find_the_model_that_was_returned(name, tmp_path):
    returned = compressed(name, tmp_path / "out")

    ours = load_model(tmp_path / "out", device="cpu")
    config = ours.config.to_dict()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)

    assert config["model_type"] == "llama"
    data = batches(rows=2, seed=1)
    assert torch.equal(logits(ours, data), logits(returned, data))
    torch.testing.assert_close(logits(theirs, data), logits(returned, data), rtol=0.05, atol=0.05)
    for layer in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        assert torch.equal(by_the_library(tmp_path / "out", layer, name), returned.get_submodule(layer).weight)


def by_the_library(folder, layer, name):
    """The weight of a layer as the library decodes it."""
    import json

    (group,) = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"].values()
    scheme = QuantizationScheme.model_validate(group)
    assert evolve(preset(name), format=group["format"]).to_dict() == group
    decoded = BaseCompressor.get_value_from_registry(group["format"]).decompress(layer_tensors(folder, layer), scheme)
    return decoded["weight"].to(torch.bfloat16)


def test_a_preset_that_quantizes_nothing_leaves_the_model_as_it_is(tmp_path):
    compressed("UNQUANTIZED", tmp_path / "out")

    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("name", ["NVFP4", "NVFP4A16"])
def test_layers_that_engines_fuse_share_their_global_scales(name, tmp_path):
    compressed(name, tmp_path / "out")

    for block in range(2):
        q, k, v, o, gate, up = (
            layer_tensors(tmp_path / "out", f"model.layers.{block}.{layer}")
            for layer in (
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.o_proj",
                "mlp.gate_proj",
                "mlp.up_proj",
            )
        )
        assert q["weight_global_scale"] == k["weight_global_scale"] == v["weight_global_scale"]
        assert gate["weight_global_scale"] == up["weight_global_scale"] != q["weight_global_scale"]
        assert o["weight_global_scale"] != q["weight_global_scale"]
        if name == "NVFP4":
            assert q["input_global_scale"] == k["input_global_scale"] == v["input_global_scale"]


def test_the_global_scale_is_that_of_the_largest_weight_of_all_that_share_it(tmp_path):
    plain = tiny_llama(dtype=torch.bfloat16)
    compressed("NVFP4A16", tmp_path / "out")

    attention = plain.model.layers[0].self_attn
    largest = max(layer.weight.abs().max().item() for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    found = layer_tensors(tmp_path / "out", "model.layers.0.self_attn.k_proj")["weight_global_scale"]
    assert found.tolist() == [torch.tensor(448 * 6 / largest, dtype=torch.float32).item()]


GROUPS = """
modifiers:
  - QuantizationModifier:
      ignore: [lm_head]
      config_groups:
        attention: {targets: ["re:.*self_attn"], weights: {num_bits: 8, strategy: channel}}
        rest: {targets: [Linear], weights: {num_bits: 4, group_size: 64}}
"""


def test_several_schemes_in_one_model_are_mixed_precision(tmp_path):
    import json

    recipe = GROUPS.replace("{num_bits: 8, strategy: channel}", "{num_bits: 8, type: float, strategy: channel}")
    returned = oneshot(tiny_llama(), recipe, tokenizer=tiny_tokenizer(), output_dir=tmp_path / "out", quiet=True)
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]

    assert config["format"] == "mixed-precision"
    assert sorted(group["format"] for group in config["config_groups"].values()) == [
        "naive-quantized",
        "pack-quantized",
    ]
    data = batches(rows=2)
    assert torch.equal(logits(load_model(tmp_path / "out", device="cpu"), data), logits(returned, data))


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("re:.*q_proj", r"layers\.0\.self_attn\.q_proj: int8 channel; .*k_proj, .*v_proj: int4 group 64"),
        ("re:.*up_proj", r"layers\.0\.mlp\.gate_proj: int4 group 64; .*up_proj: int8 channel"),
    ],
)
@pytest.mark.parametrize("folder", ["out", None])
def test_layers_that_engines_fuse_must_have_one_scheme(folder, pattern, said, tmp_path):
    output = folder and tmp_path / folder

    with pytest.raises(SchemeError, match=rf"(?s){said}.*engines make one layer of each of these 2 groups"):
        oneshot(tiny_llama(), GROUPS.replace("re:.*self_attn", pattern), output_dir=output, quiet=True)
    assert not (tmp_path / "out").exists()


def test_one_of_them_that_is_ignored_is_refused_too(tmp_path):
    modifier = QuantizationModifier(scheme="W8A8", ignore=["lm_head", "re:.*v_proj"])

    with pytest.raises(SchemeError, match=r"v_proj: left as it is"):
        oneshot(tiny_llama(), modifier, output_dir=tmp_path / "out", quiet=True)


def test_as_dense_weights_schemes_may_be_split(tmp_path):
    oneshot(
        tiny_llama(),
        GROUPS.replace("re:.*self_attn", "re:.*q_proj"),
        format="dense",
        tokenizer=tiny_tokenizer(),
        output_dir=tmp_path / "out",
        quiet=True,
    )


@pytest.mark.parametrize(
    ("name", "layout"),
    [("FP8_DYNAMIC", "float-quantized"), ("W4A16", "pack-quantized"), ("NVFP4A16", "nvfp4-pack-quantized")],
)
def test_two_of_four_weights_stay_zero_on_disk(name, layout, tmp_path):
    import json

    recipe = f"""
    modifiers:
      - MagnitudePruningModifier: {{mask_structure: "2:4", ignore: [lm_head]}}
      - QuantizationModifier: {{scheme: {name}, ignore: [lm_head]}}
    """
    oneshot(tiny_llama(), recipe, tokenizer=tiny_tokenizer(), output_dir=tmp_path / "out", quiet=True)
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]

    assert config["format"] == layout  # the library has given up the layouts that leave zeros out
    assert config["sparsity_config"] == {}
    weight = load_model(tmp_path / "out", device="cpu").model.layers[1].mlp.up_proj.weight
    assert (weight.reshape(-1, 4) != 0).sum(1).max() == 2


@pytest.mark.parametrize("name", ["NVFP4", "NVFP4A16"])
def test_the_halves_of_an_expert_share_a_global_scale_and_an_expert_without_tokens_has_that_of_the_others(
    name, tmp_path
):
    modifier = QuantizationModifier(scheme=name, ignore=["lm_head", "re:.*gate$"])
    oneshot(
        tiny_mixture("mixtral", experts=8),
        modifier,
        dataset=batches(rows=1, length=3),
        moe_calibrate_all_experts=False,
        tokenizer=tiny_tokenizer(),
        output_dir=tmp_path / "out",
        quiet=True,
    )
    reader = CheckpointReader(tmp_path / "out")
    names = [name for name in reader.names() if name.endswith("global_scale")]
    parts = {name.rpartition(".")[0] for name in names if ".experts." in name}
    weights = {part: reader.get(f"{part}.weight_global_scale") for part in parts}

    assert all(torch.isfinite(reader.get(name)).all() for name in names)
    assert len(parts) == 2 * 8 * 3
    for part in parts:
        if part.endswith("w1"):
            assert weights[part] == weights[part.removesuffix("w1") + "w3"] != weights[part.removesuffix("w1") + "w2"]
        if name == "NVFP4":
            assert reader.get(f"{part}.input_global_scale") > 0
