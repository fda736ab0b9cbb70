"""`coldpress inspect`: the numbers are those of the files, on any folder of safetensors files."""

import json

import pytest
import torch
from safetensors.torch import save_file

LAYER_WEIGHTS = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128  # q, k, v, o and the MLP of one block


def look(coldpress, folder) -> dict:
    answer = coldpress("inspect", folder, "--json")
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def test_bits_per_weight_are_codes_and_scales(coldpress, compressed):
    found = look(coldpress, compressed)
    part = found["parts"][0]

    assert part["quantized"]
    assert part["name"].startswith("int4 group 32")
    assert part["modules"] == 14
    assert part["weights"] == 2 * LAYER_WEIGHTS
    shapes = 14 * 16  # weight_shape: two int64 a layer
    scales = 2 * LAYER_WEIGHTS // 32 * 4  # float32, as the model
    assert part["bytes"] == 2 * LAYER_WEIGHTS // 2 + scales + shapes
    assert part["scale_bytes"] == scales + shapes
    assert found["quantized_bits_per_weight"] == pytest.approx(8 * part["bytes"] / part["weights"], abs=1e-4)


def test_parts_add_up_to_the_file(coldpress, compressed):
    found = look(coldpress, compressed)
    size = (compressed / "model.safetensors").stat().st_size

    assert sum(part["bytes"] for part in found["parts"]) == found["bytes"]
    assert found["bytes"] <= size < found["bytes"] + 20_000  # the header


def test_reasons_come_from_the_report(coldpress, compressed):
    left = {line["name"]: line["reason"] for line in look(coldpress, compressed)["left_alone"]}

    assert left["lm_head"] == "ignored by QuantizationModifier"
    assert "model.embed_tokens" in left


def test_without_a_report_the_config_is_asked(coldpress, compressed, tmp_path):
    for path in compressed.iterdir():
        if path.name != "report.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())

    left = {line["name"]: line["reason"] for line in look(coldpress, tmp_path)["left_alone"]}

    assert left["lm_head"] == "ignored by config.json"


def test_a_plain_model_has_the_bits_of_its_dtype(coldpress, model):
    found = look(coldpress, model)

    assert found["quant_method"] is None
    assert found["quantized_bits_per_weight"] is None
    assert found["bits_per_weight"] == 32
    assert found["dtype"] == "float32"
    assert found["left_alone"] == []


def test_tensors_of_another_dtype_are_listed(coldpress, tmp_path):
    tensors = {"a.weight": torch.zeros(4, 4, dtype=torch.bfloat16), "a.router": torch.zeros(2, 2)}
    save_file(tensors, tmp_path / "model.safetensors")

    found = look(coldpress, tmp_path)

    assert found["dtype"] == "bfloat16"
    assert found["odd_dtypes"] == [{"name": "a.router", "dtype": "float32"}]


def test_a_method_that_no_plugin_reads_is_told_by_its_own_words(coldpress, tmp_path):
    tensors = {
        "a.qweight": torch.zeros(8, 64, dtype=torch.int32),
        "a.qzeros": torch.zeros(1, 8, dtype=torch.int32),
        "a.scales": torch.zeros(1, 64, dtype=torch.float16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"quantization_config": {"quant_method": "foreign", "bits": 4, "group_size": 128}}
    (tmp_path / "config.json").write_text(json.dumps(config))

    part = look(coldpress, tmp_path)["parts"][0]

    assert part["name"] == "foreign 4 bits group 128"
    assert part["weights"] == 64 * 64


def test_codes_of_a_method_that_no_plugin_reads_are_never_norms_or_biases(coldpress, tmp_path):
    tensors = {
        "a.experts.up_blocks": torch.zeros(2, 64, 4, 16, dtype=torch.uint8),
        "a.experts.up_scales": torch.zeros(2, 64, 4, dtype=torch.uint8),
        "a.experts.down_blocks": torch.zeros(2, 32, 4, 16, dtype=torch.uint8),
        "a.experts.bias": torch.zeros(2, 64),
        "b.weight": torch.zeros(64 * 16, dtype=torch.uint8),  # in one dimension
        "norm.weight": torch.zeros(64),
        "position_ids": torch.zeros(8, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "foreign"}}))

    parts = {part["name"]: part for part in look(coldpress, tmp_path)["parts"]}

    coded = parts["foreign: uint8 codes"]
    assert (coded["modules"], coded["weights"], coded["scale_bytes"]) == (2, 2 * 96 * 64 + 1024, 2 * 64 * 4)
    assert set(parts) == {
        "foreign: uint8 codes",
        "norms, biases: float32",
        "other tensors: int64",
        "other matrices: float32",
    }


def test_codes_of_a_format_that_is_gone_have_the_words_and_the_weights_of_the_report(coldpress, compressed, tmp_path):
    for path in compressed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "gone"
    (tmp_path / "config.json").write_text(json.dumps(config))

    part = look(coldpress, tmp_path)["parts"][0]

    assert part == {**look(coldpress, compressed)["parts"][0], "name": "int4 group 32"}


def test_the_page_is_readable_in_80_columns(coldpress, compressed):
    answer = coldpress("inspect", compressed)

    assert answer.code == 0
    assert "int4 group 32" in answer.out
    assert "not compressed" in answer.out
    assert max(len(line) for line in answer.out.splitlines()) <= 80


@pytest.mark.parametrize("content", [None, b"", b"\x10\x00\x00\x00\x00\x00\x00\x00{broken", b"\xff" * 8])
def test_a_folder_without_a_sound_checkpoint_is_refused(coldpress, tmp_path, content):
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)

    answer = coldpress("inspect", tmp_path)

    assert answer.code == 2
    assert answer.out == ""
    assert str(tmp_path) in answer.err


@pytest.mark.parametrize(("scheme", "bits"), [("NVFP4A16", 4.5), ("MXFP4A16", 4.25), ("MXFP6A16", 6.25)])
def test_packed_floats_have_their_own_width(coldpress, tmp_path, scheme, bits):
    from coldpress import oneshot
    from coldpress.testing.models import tiny_llama
    from coldpress_quantization import QuantizationModifier

    modifier = QuantizationModifier(scheme=scheme, ignore=["lm_head"])
    oneshot(tiny_llama(dtype=torch.bfloat16), modifier, output_dir=tmp_path / "out", quiet=True)

    found = look(coldpress, tmp_path / "out")

    assert found["quantized_bits_per_weight"] == pytest.approx(bits, abs=0.01)


def test_a_quantized_cache_has_a_line(coldpress, tmp_path):
    from coldpress import oneshot
    from coldpress.testing.models import batches, tiny_llama
    from coldpress_quantization import QuantizationModifier

    modifier = QuantizationModifier(kv_cache_scheme={"num_bits": 8, "type": "float"}, ignore=["lm_head"])
    oneshot(tiny_llama(), modifier, dataset=batches(rows=2), pipeline="basic", output_dir=tmp_path / "out", quiet=True)

    assert "KV cache: float8 tensor" in [part["name"] for part in look(coldpress, tmp_path / "out")["parts"]]
