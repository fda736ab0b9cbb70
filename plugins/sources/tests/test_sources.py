"""What is read, against decoding that is written differently, and what becomes of it without a model."""

import json
import shutil
from functools import partial

import pytest
import torch
from containers import (
    blocks,
    fp8_folder,
    gpt_oss,
    llama,
    modelopt_folder,
    mx,
    nvfp4,
    of_blocks,
    of_nibbles,
    rows,
    write,
)
from safetensors.torch import load_file

from coldpress import CheckpointError, convert, model_free_ptq, oneshot
from coldpress.numerics import unpack_int32
from coldpress.testing.models import tiny_llama
from coldpress_quantization import QuantizationModifier
from coldpress_sources import FP8Source, ModelOptSource, MXFP4Source


def tensors_of(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def folder_of(path, tensors, quantization):
    path.mkdir()
    write(path, [tensors])
    (path / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16", "quantization_config": quantization}))
    return path


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_fp8_blocks_that_stick_out_are_decoded(tmp_path):
    weight = randn(200, 300)
    parts = blocks(weight)
    folder = folder_of(
        tmp_path / "m", {f"kv_a_proj_with_mqa.{name}": part for name, part in parts.items()}, {"quant_method": "fp8"}
    )

    found = FP8Source(folder).weights().read("kv_a_proj_with_mqa.weight")

    assert torch.equal(found, of_blocks(parts["weight"], parts["weight_scale_inv"]))


@pytest.mark.parametrize("shape", [(), (1,), (64, 1), (64,)])
def test_fp8_with_a_scale_for_the_tensor_or_the_row(shape, tmp_path):
    codes, scale = randn(64, 32).to(torch.float8_e4m3fn), randn(*shape).abs()
    tensors = {"a.weight": codes, "a.weight_scale": scale, "a.activation_scale": torch.tensor(0.5)}
    folder = folder_of(tmp_path / "m", tensors, {"quant_method": "fp8", "activation_scheme": "static"})

    weights = FP8Source(folder).weights()

    expected = codes.float() * (scale if scale.numel() == 1 else scale.reshape(64, 1))
    assert torch.equal(weights.read("a.weight"), expected)
    assert weights.names() == ["a.weight"]
    assert float(weights.quantized("a.weight").input_scale) == 0.5


def test_deepseek_v4_has_fp4_in_bytes_and_exponents_for_scales(tmp_path):
    weight = randn(64, 128)
    packed, exponents, scale = mx(weight)
    wide = torch.tensor([[2.0**-7]]).to(torch.float8_e8m0fnu)
    tensors = {
        "layers.0.ffn.experts.0.w1.weight": packed.view(torch.int8),
        "layers.0.ffn.experts.0.w1.scale": exponents.view(torch.float8_e8m0fnu),
        "layers.0.attn.wq_a.weight": weight.to(torch.float8_e4m3fn),
        "layers.0.attn.wq_a.scale": wide,
    }
    folder = folder_of(tmp_path / "m", tensors, {"quant_method": "fp8", "scale_fmt": "ue8m0"})

    weights = FP8Source(folder).weights()

    expert = weights.read("layers.0.ffn.experts.0.w1.weight")
    assert torch.equal(expert.float(), of_nibbles(packed, 32, scale))
    attention = weight.to(torch.float8_e4m3fn).float() * 2.0**-7
    assert torch.equal(weights.read("layers.0.attn.wq_a.weight"), attention)


def test_nvfp4_of_modelopt_is_decoded(tmp_path):
    weight = randn(64, 64)
    parts = nvfp4(weight)
    folder = folder_of(tmp_path / "m", {f"a.{name}": x for name, x in parts.items()}, {"quant_method": "modelopt"})

    found = ModelOptSource(folder).weights().read("a.weight")

    scale = parts["weight_scale"].float() * parts["weight_scale_2"]
    torch.testing.assert_close(found, of_nibbles(parts["weight"], 16, scale), rtol=1e-6, atol=0)


def test_gpt_oss_is_decoded_as_transformers_has_it(tmp_path):
    folder, dense = gpt_oss(tmp_path / "m")

    weights = MXFP4Source(folder).weights()

    for name, tensor in dense.items():
        assert torch.equal(weights.read(name).float(), tensor)


# --- without a model


def test_fp8_blocks_become_compressed_tensors_bit_for_bit(tmp_path):
    source = fp8_folder(tmp_path / "m")

    report = convert(source, tmp_path / "out", to="compressed-tensors", quiet=True)

    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    for name in [name for name in before if name.endswith("_proj.weight")]:
        assert torch.equal(after[name].view(torch.uint8), before[name].view(torch.uint8))
        assert torch.equal(after[f"{name}_scale"], before[f"{name}_scale_inv"])
    said = config_of(tmp_path / "out")["quantization_config"]
    assert said["config_groups"]["group_0"]["weights"]["block_structure"] == [128, 128]
    assert report.summary()["quantized"] == 14


def test_a_scheme_that_is_there_keeps_its_bits(tmp_path):
    source = fp8_folder(tmp_path / "m")

    model_free_ptq(source, tmp_path / "out", scheme="FP8_BLOCK", quiet=True)

    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    names = [name for name in before if name.endswith("_proj.weight")]
    assert all(torch.equal(after[name].view(torch.uint8), before[name].view(torch.uint8)) for name in names)


def test_another_scheme_is_rounded_once_from_float32(tmp_path):
    source = fp8_folder(tmp_path / "m")
    recipe = QuantizationModifier(scheme="W4A16", group_size=64, ignore=["lm_head"])

    model_free_ptq(source, tmp_path / "out", recipe=recipe, quiet=True)

    out, dense = tensors_of(tmp_path / "out"), FP8Source(source).weights()
    packed = [name for name in out if name.endswith("weight_packed")]
    assert len(packed) == 14
    for name in packed:
        weight = dense.read(name.removesuffix("_packed")).unflatten(-1, (-1, 64))  # float32
        scale = out[name.replace("packed", "scale")]
        codes = (weight / scale.float()[..., None]).round().clamp(-8, 7).flatten(-2)
        assert scale.dtype == torch.bfloat16
        assert torch.equal(scale, (weight.abs().amax(-1) / 7.5).bfloat16())
        assert torch.equal(unpack_int32(out[name], 4, tuple(codes.shape)), codes.to(torch.int8))


def test_oneshot_streams_fp8(tmp_path):
    source = fp8_folder(tmp_path / "m")
    recipe = QuantizationModifier(scheme="W8A8", ignore=["lm_head"])
    convert(source, tmp_path / "dense", to="dense", quiet=True)
    oneshot(str(tmp_path / "dense"), recipe, output_dir=tmp_path / "two", return_model=False, quiet=True)

    oneshot(str(source), recipe, output_dir=tmp_path / "one", return_model=False, quiet=True, stream_weights=True)

    one, two = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert config_of(tmp_path / "one")["quantization_config"]["format"] == "int-quantized"


@pytest.mark.parametrize("said", [{"activation_scheme": "static"}, {"weight_block_size": [64, 64]}])
def test_what_the_configuration_of_the_language_model_says_counts_too(said, tmp_path):
    encode = partial(blocks, side=64) if "weight_block_size" in said else rows
    source = llama(tmp_path / "top", {"quant_method": "fp8", **said}, encode)
    shutil.copytree(source, tmp_path / "nested")
    config = config_of(source)
    inner = {"text_config": {"quantization_config": config.pop("quantization_config")}}
    (tmp_path / "nested" / "config.json").write_text(json.dumps({**config, **inner}))

    for name in ("top", "nested"):
        convert(tmp_path / name, tmp_path / f"{name}-out", quiet=True)

    top, nested = (config_of(tmp_path / f"{name}-out") for name in ("top", "nested"))
    assert nested["text_config"]["quantization_config"] == top["quantization_config"]
    assert tensors_of(tmp_path / "nested-out").keys() == tensors_of(tmp_path / "top-out").keys()


def test_mxfp4_becomes_compressed_tensors_with_the_same_codes_and_exponents(tmp_path):
    source, _ = gpt_oss(tmp_path / "m")

    convert(source, tmp_path / "out", to="compressed-tensors", quiet=True)

    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    prefix = "model.layers.1.mlp.experts"
    blocks, scales = before[f"{prefix}.gate_up_proj_blocks"].flatten(-2), before[f"{prefix}.gate_up_proj_scales"]
    for expert in range(4):
        for first, role in ((0, "gate_proj"), (1, "up_proj")):
            name = f"{prefix}.{expert}.{role}"
            assert torch.equal(after[f"{name}.weight_packed"], blocks[expert, first::2])
            assert torch.equal(after[f"{name}.weight_scale"], scales[expert, first::2])
            assert torch.equal(after[f"{name}.bias"], before[f"{prefix}.gate_up_proj_bias"][expert, first::2])
    assert config_of(tmp_path / "out")["quantization_config"]["format"] == "mxfp4-pack-quantized"


def test_mxfp4_becomes_the_dense_checkpoint(tmp_path):
    source, dense = gpt_oss(tmp_path / "m")

    convert(source, tmp_path / "out", to="dense", quiet=True)

    after = tensors_of(tmp_path / "out")
    for name, tensor in dense.items():
        assert torch.equal(after[name], tensor.bfloat16())
    assert "quantization_config" not in config_of(tmp_path / "out")


def test_modelopt_becomes_compressed_tensors(tmp_path):
    source = modelopt_folder(tmp_path / "m")

    convert(source, tmp_path / "out", to="compressed-tensors", quiet=True)

    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    name = "model.layers.0.self_attn.q_proj"
    assert torch.equal(after[f"{name}.weight_packed"], before[f"{name}.weight"])
    assert torch.equal(
        after[f"{name}.weight_scale"].view(torch.uint8), before[f"{name}.weight_scale"].view(torch.uint8)
    )
    assert torch.equal(after[f"{name}.weight_global_scale"], 1 / before[f"{name}.weight_scale_2"].reshape(1))
    assert torch.equal(after[f"{name}.input_global_scale"], 1 / before[f"{name}.input_scale"].reshape(1))
    assert not (tmp_path / "out" / "hf_quant_config.json").exists()


def test_what_the_recipe_does_not_mean_stays_quantized_as_it_was(tmp_path):
    source = modelopt_folder(tmp_path / "m")

    model_free_ptq(source, tmp_path / "out", scheme="FP8_BLOCK", ignore=["re:.*mlp.*"], quiet=True)

    groups = config_of(tmp_path / "out")["quantization_config"]["config_groups"].values()
    assert {group["format"] for group in groups} == {"nvfp4-pack-quantized", "float-quantized"}
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    name = "model.layers.0.mlp.up_proj"
    assert torch.equal(after[f"{name}.weight_packed"], before[f"{name}.weight"])


@pytest.mark.parametrize(("form", "scheme"), [("gptq", "W4A16"), ("gptq", "W3A16"), ("awq", "W4A16_ASYM")])
def test_gptq_and_awq_become_compressed_tensors_that_stand_for_the_same(form, scheme, tmp_path):
    model = tiny_llama(hidden=128).half()
    recipe = QuantizationModifier(scheme=scheme, group_size=64, ignore=["lm_head"])
    oneshot(model, recipe, output_dir=tmp_path / "m", format=form, quiet=True)

    convert(tmp_path / "m", tmp_path / "ct", to="compressed-tensors", quiet=True)
    for source in ("m", "ct"):
        convert(tmp_path / source, tmp_path / f"{source}-dense", to="dense", quiet=True)

    assert config_of(tmp_path / "ct")["quantization_config"]["quant_method"] == "compressed-tensors"
    one, two = tensors_of(tmp_path / "m-dense"), tensors_of(tmp_path / "ct-dense")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    state = model.state_dict()
    assert all(torch.equal(one[name], state[name]) for name in one)


# --- bad input


def test_codes_without_scales_are_refused_by_name(tmp_path):
    tensors = {"a.weight": randn(8, 8).to(torch.float8_e4m3fn)}
    folder = folder_of(tmp_path / "m", tensors, {"quant_method": "fp8"})

    with pytest.raises(CheckpointError, match=r"a\.weight is float8_e4m3fn, and none of weight_scale_inv"):
        model_free_ptq(folder, tmp_path / "out", scheme="W8A8", quiet=True)


def test_scales_of_another_shape_are_refused_by_name(tmp_path):
    tensors = {"a.weight": randn(256, 256).to(torch.float8_e4m3fn), "a.weight_scale_inv": randn(3, 2)}
    folder = folder_of(tmp_path / "m", tensors, {"quant_method": "fp8"})

    with pytest.raises(CheckpointError, match=r"a.weight_scale_inv has the shape \(3, 2\), which is no scale of a"):
        convert(folder, tmp_path / "out", quiet=True)


def test_blocks_without_exponents_are_refused_by_name(tmp_path):
    tensors = {"experts.down_proj_blocks": torch.zeros(2, 64, 2, 16, dtype=torch.uint8)}
    folder = folder_of(tmp_path / "m", tensors, {"quant_method": "mxfp4"})

    with pytest.raises(CheckpointError, match="lacks experts.down_proj_scales"):
        convert(folder, tmp_path / "out", quiet=True)


def test_scales_of_a_cache_do_not_come_along_and_are_told(tmp_path, caplog):
    source = llama(tmp_path / "m", {"quant_method": "modelopt"}, nvfp4)
    tensors = tensors_of(source) | {"model.layers.0.self_attn.k_proj.k_scale": torch.tensor(0.1)}
    write(source, [tensors])

    report = convert(source, tmp_path / "out", quiet=True)

    lines = {line.name: line.reason for line in report.layers}
    assert "left out" in lines["model.layers.0.self_attn.k_proj.k_scale"]
    assert "do not come along" in caplog.text
