"""What a checkpoint holds, of folders that other tools wrote: codes, their companions, and what was left alone."""

import json

import pytest
import torch
from safetensors.torch import save_file

from coldpress.errors import CheckpointError
from coldpress.report.contents import bits_per_weight, contents_of


@pytest.fixture
def checkpoint(tmp_path):
    """A function that writes tensors and a quantization_config, and looks into the folder."""

    def write(tensors, quantization=None, report=None):
        save_file(tensors, tmp_path / "model.safetensors")
        if quantization is not None:
            config = {"architectures": ["A"], "quantization_config": quantization}
            (tmp_path / "config.json").write_text(json.dumps(config))
        if report is not None:
            (tmp_path / "report.json").write_text(json.dumps({"layers": report}))
        return contents_of(tmp_path)

    return write


def zeros(*shape, dtype=torch.uint8):
    return torch.zeros(*shape, dtype=dtype)


def parts(found):
    return {part.name: (part.count, part.weights, part.nbytes, part.companion_nbytes) for part in found.parts}


def test_companions_whose_names_go_on_after_a_weight_belong_to_it(checkpoint):
    layer = {
        "a.weight": zeros(64 * 32 // 2, 1),  # two codes of four bits in a byte, as bitsandbytes lays them
        "a.weight.absmax": zeros(32),
        "a.weight.quant_map": zeros(16, dtype=torch.float32),
        "a.weight.quant_state.bitsandbytes__nf4": zeros(90),
        "norm.weight": zeros(32, dtype=torch.float32),
    }

    found = checkpoint(layer, {"quant_method": "bitsandbytes", "load_in_4bit": True})

    assert parts(found) == {
        "bitsandbytes 4 bits": (1, 64 * 32, 1024 + 32 + 64 + 90, 32 + 64 + 90),
        "norms, biases: float32": (1, 32, 128, 0),
    }
    assert found.quantized_bits() == bits_per_weight(1024 + 32 + 64 + 90, 64 * 32)


@pytest.mark.parametrize(
    ("config", "said", "weights"),
    [
        ({"quant_method": "foreign", "bits": 2, "group_size": 64}, "foreign 2 bits group 64", 4 * 8 * 16),
        ({"quant_method": "foreign"}, "foreign: uint8 codes", 8 * 16),
        ({"quant_method": "foreign", "bits": "four"}, "foreign: uint8 codes", 8 * 16),
    ],
)
def test_how_wide_codes_are_is_what_the_config_says_for_all_layers(checkpoint, config, said, weights):
    tensors = {
        "a.codes": zeros(8, 16),
        "a.scales": zeros(8, dtype=torch.float16),
        "a.bias": zeros(8, dtype=torch.float16),
    }

    found = parts(checkpoint(tensors, config))

    assert found == {said: (1, weights, 8 * 16 + 16, 16), "norms, biases: float16": (1, 8, 16, 0)}


def test_a_report_says_what_codes_are_and_how_many_weights_they_stand_for(checkpoint):
    line = {"name": "a", "status": "quantized", "scheme": "int3 channel", "shape": [8, 40]}

    found = checkpoint(
        {"a.codes": zeros(8, 15), "a.scale": zeros(8, dtype=torch.float32)}, {"quant_method": "x"}, [line]
    )

    assert parts(found) == {"int3 channel": (1, 320, 8 * 15 + 32, 32)}
    assert found.left_alone == ()


def test_what_was_left_alone_is_told_with_its_reason(checkpoint):
    report = [
        {"name": "a", "status": "untouched", "reason": "ignored"},
        {"name": "b", "status": "fallback", "reason": "no token"},
        {"name": "c", "status": "untouched"},
        {"name": "d", "status": "changed"},
    ]

    found = checkpoint({"a.weight": zeros(4, 4, dtype=torch.float32)}, report=report)

    assert dict(found.left_alone) == {"a": "ignored", "b": "no token", "c": "no reason given"}


@pytest.mark.parametrize("report", [5, [5], {"a": {}}, [{"scheme": "int8"}]])
def test_a_report_that_is_none_is_named(checkpoint, report):
    with pytest.raises(CheckpointError, match=r"report\.json is no report of a run"):
        checkpoint({"a.weight": zeros(4, 4)}, report=report)


def test_words_of_plain_tensors_go_by_shape_name_and_dtype(checkpoint):
    tensors = {
        "model.embed_tokens.weight": zeros(8, 4, dtype=torch.bfloat16),
        "lm_head.weight": zeros(8, 4, dtype=torch.bfloat16),
        "norm.weight": zeros(4, dtype=torch.bfloat16),
        "router.weight": zeros(2, 2, dtype=torch.float32),
        "ids": zeros(8, dtype=torch.int64),
    }

    found = checkpoint(tensors)

    assert parts(found).keys() == {
        "embeddings: bfloat16",
        "other matrices: bfloat16",
        "norms, biases: bfloat16",
        "other matrices: float32",
        "other tensors: int64",
    }
    assert (found.dtype, found.method, found.quantized_bits()) == ("bfloat16", None, None)
    assert set(found.odd) == {("router.weight", "float32"), ("ids", "int64")}
    assert sum(part.nbytes for part in found.parts) == found.nbytes()


def test_no_weights_have_no_bits():
    assert bits_per_weight(100, 0) == 0.0


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError):
        contents_of(tmp_path)
