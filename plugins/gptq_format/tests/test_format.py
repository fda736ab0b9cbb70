"""Configurations, refusals, and whole checkpoints that are read again."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from coldpress import CheckpointError, SchemeError, load_model, oneshot
from coldpress.schemes import preset
from coldpress.testing.interrupt import interrupted
from coldpress.testing.models import batches, logits, tiny_llama, tiny_tokenizer
from coldpress_gptq_format import GPTQFormat


def compress(output, *, recipe="W4A16", size=32, model=None, **settings):
    recipe = (
        recipe
        if "\n" in recipe
        else f"QuantizationModifier: {{scheme: {recipe}, group_size: {size}, ignore: [lm_head]}}\n"
    )
    return oneshot(
        model or tiny_llama(hidden=64), recipe, output_dir=output, tokenizer=tiny_tokenizer(), quiet=True, **settings
    )


def config_of(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize(("scheme", "size"), [("W3A16", 32), ("W4A16", 32), ("W8A16", -1), ("W4A16_ASYM", 32)])
def test_a_checkpoint_is_read_as_it_was_in_memory(tmp_path, scheme, size):
    model = compress(tmp_path / "out", recipe=scheme, size=size, format="gptq")

    again = load_model(tmp_path / "out", dtype="float32")

    data = batches(rows=2)
    assert torch.equal(logits(model, data), logits(again, data))
    assert config_of(tmp_path / "out")["checkpoint_format"] == ("gptq_v2" if "ASYM" in scheme else "gptq")


def test_layers_that_differ_have_rules_and_fused_ones_one_rule_together(tmp_path):
    recipe = """
QuantizationModifier:
  ignore: [lm_head, "re:.*1.self_attn.*", "re:.*0.mlp.down_proj"]
  config_groups:
    wide: {targets: ["re:.*1.mlp"], weights: {num_bits: 8, group_size: 32}}
    narrow: {targets: [Linear], weights: {num_bits: 4, group_size: 32}}
"""
    model = compress(tmp_path / "out", recipe=recipe, format="gptq")

    rules = config_of(tmp_path / "out")["dynamic"]
    assert rules[r"-:^model\.layers\.1\.self_attn\.[^.]+$"] == {}
    assert rules[r"+:^model\.layers\.1\.mlp\.[^.]+$"] == {"bits": 8, "group_size": 32, "sym": True}
    assert rules[r"-:^model\.layers\.0\.mlp\.down_proj$"] == {}
    assert not any("lm_head" in rule for rule in rules)
    data = batches(rows=2)
    assert torch.equal(logits(model, data), logits(load_model(tmp_path / "out", dtype="float32"), data))


def test_a_quantized_head_is_told():
    form, scheme = GPTQFormat(), preset("W4A16")

    quantized, dense = form.config({"a.b": scheme, "lm_head": scheme}, []), form.config({"a.b": scheme}, ["lm_head"])

    assert form.read(quantized)("lm_head", ("Linear",)) is not None
    assert form.read(dense)("lm_head", ("Linear",)) is None
    assert dense["dynamic"] == {}


def test_gptq_chooses_codes_for_scales_in_float16(tmp_path):
    model = tiny_llama(hidden=64)
    for layer in model.model.layers:  # scales where float16 has steps of 6e-8
        layer.mlp.up_proj.weight.data.mul_(1e-3)
    recipe = "GPTQModifier:\n  scheme: W4A16\n  group_size: 32\n  refit_scales: true\n  ignore: [lm_head]\n"

    model = compress(tmp_path / "out", recipe=recipe, model=model, format="gptq", dataset=batches(rows=8))

    data = batches(rows=2)
    assert torch.equal(logits(model, data), logits(load_model(tmp_path / "out", dtype="float32"), data))


def test_a_streamed_run_gives_the_files_of_one_in_memory(tmp_path):
    tiny_llama(hidden=64, dtype=torch.bfloat16).save_pretrained(tmp_path / "model")

    compress(tmp_path / "streamed", model=str(tmp_path / "model"), return_model=False, format="gptq")
    compress(tmp_path / "memory", model=load_model(tmp_path / "model"), format="gptq")

    streamed, memory = (load_file(tmp_path / name / "model.safetensors") for name in ("streamed", "memory"))
    assert streamed.keys() == memory.keys()
    assert all(torch.equal(tensor, memory[name]) for name, tensor in streamed.items())


def test_an_interrupted_run_gives_the_same_files(tmp_path):
    settings = {"format": "gptq", "recipe": "W4A16_ASYM"}
    compress(tmp_path / "whole", **settings)

    with interrupted(2):
        compress(tmp_path / "resumed", **settings)
    compress(tmp_path / "resumed", **settings)

    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


@pytest.mark.parametrize(
    ("scheme", "shape", "words"),
    [
        ("W8A8", (64, 64), "leaves inputs as they are"),
        ("W5A16", (128, 128), "not int5"),
        ("FP8_DYNAMIC", (64, 64), "leaves inputs"),
        ("MXFP4A16", (64, 64), "not float4"),
        ("W4A16", (36, 128), "36 rows of 4 bits do not fill words"),
        ("W3A16", (48, 128), "48 rows of 3 bits do not fill words"),
        ("Q4_K", (64, 256), "scales of 6 bits, as in Q4_K, are for the format gguf"),
        ("Q6_K", (64, 256), "not int6"),
    ],
)
def test_what_its_readers_cannot_read_is_refused(scheme, shape, words):
    form = GPTQFormat()
    scheme = form.complete({"x.up": preset(scheme)}, {"x.up": shape})["x.up"]

    with pytest.raises(SchemeError, match=words) as caught:
        form.check(scheme, "x.up", shape)
    assert "x.up" in str(caught.value)


def test_version_1_refuses_zero_points_before_the_run(tmp_path):
    with pytest.raises(SchemeError, match="choose quantization_format: gptq_v2"):
        compress(tmp_path / "out", recipe="W4A16_ASYM", format="gptq", quantization_format="gptq")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("factor", [1e8, 1e-9])
def test_scales_that_float16_cannot_hold_are_refused_before_a_code_is_chosen(tmp_path, factor):
    model = tiny_llama(hidden=64)
    model.model.layers[0].mlp.up_proj.weight.data.mul_(factor)

    with pytest.raises(
        SchemeError, match=r"layers\.0\.mlp\.up_proj: the scales of its weights do not fit into float16"
    ):
        compress(tmp_path / "out", model=model, format="gptq")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checkpoint_format": "marlin"}, "marlin"),
        ({"bits": "four"}, "num_bits"),
        ({"pack_dtype": "int64"}, "int64"),
        ({"dynamic": {"-:(": {}}}, "not a regular expression"),
        ({"dynamic": {"+:.*": {"bits": 0}}}, "num_bits"),
        ({"dynamic": {"+:.*": 5}}, "must be a table"),
        ({"dynamic": {"+:a{99999999}": {}}}, "repeats its parts"),
        ({"dynamic": 5}, "dynamic must be a table of patterns, got 5"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_told(change, words):
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "checkpoint_format": "gptq"}

    with pytest.raises(CheckpointError, match=words):
        GPTQFormat().read({**config, **change})


def test_a_damaged_layer_is_told(tmp_path):
    compress(tmp_path / "out", format="gptq")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.g_idx"
    save_file({**tensors, name: tensors[name].flip(0)}, file, metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match="act-order"):
        load_model(tmp_path / "out")
