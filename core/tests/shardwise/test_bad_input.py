"""What model_free_ptq is given and cannot use: refused before any work where that is possible, and by name."""

import errno
import json
import os

import pytest
import torch
from checkpoints import differing, files_of, mixture, randn, tensors_of, write
from safetensors.torch import save_file

from coldpress import ArgumentError, CheckpointError, ModelError, SchemeError, TargetError, convert, model_free_ptq
from coldpress.errors import NumericsError


def refusal(tmp_path, kind, match, source=None, **settings):
    with pytest.raises(kind, match=match):
        model_free_ptq(source or tmp_path / "model", tmp_path / "out", **{"scheme": "W8A8", "quiet": True, **settings})
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []


def test_a_group_that_does_not_divide_is_refused_before_a_file_is_written(tmp_path):
    write(tmp_path / "model", [mixture(columns=96)])

    refusal(tmp_path, SchemeError, "group_size 128 does not divide the 96 columns", scheme="W4A16")


def test_blocks_need_not_divide_rows(tmp_path):
    write(tmp_path / "model", [{"a.q_proj.weight": randn(144, 256)}])

    model_free_ptq(tmp_path / "model", tmp_path / "out", scheme="FP8_BLOCK", quiet=True)

    assert tensors_of(tmp_path / "out")["a.q_proj.weight_scale"].shape == (2, 2)


def test_blocks_whose_inputs_do_not_divide_are_refused_before_a_file_is_written(tmp_path):
    write(tmp_path / "model", [{"a.q_proj.weight": randn(128, 200)}])

    refusal(tmp_path, SchemeError, "group_size 128 does not divide the 200 columns", scheme="FP8_BLOCK")


@pytest.mark.parametrize("scheme", ["FP8", "NVFP4"])
def test_static_inputs_are_refused(scheme, tmp_path):
    write(tmp_path / "model", [mixture()])

    refusal(tmp_path, TargetError, "reads calibration data.*use oneshot", scheme=scheme)


def test_nan_is_refused_by_name(tmp_path):
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"):
        tensors = mixture()
        tensors[name][3, 5] = float("nan")
        write(tmp_path / "model", [tensors])

        with pytest.raises(Exception, match=f"{name}.*1 NaN"):
            model_free_ptq(tmp_path / "model", tmp_path / "out", scheme="W8A8", quiet=True)
        assert not (tmp_path / "out").exists()


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path / "model", [mixture(), {"more.weight": randn(8, 8)}])
    (tmp_path / "model" / "model-00002-of-00002.safetensors").unlink()

    refusal(tmp_path, CheckpointError, "lacks model-00002-of-00002.safetensors")


def test_a_truncated_shard_is_named(tmp_path):
    write(tmp_path / "model", [mixture()])
    path = tmp_path / "model" / "model-00001-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-10])

    refusal(tmp_path, CheckpointError, "model-00001-of-00001.safetensors.*truncated")


@pytest.mark.parametrize("place", ["../{}", "/etc/{}", "sub/{}", "sub/../{}"])
def test_an_index_that_leads_out_of_the_folder_is_refused(place, tmp_path):
    write(tmp_path / "model", [mixture()])
    index = {"weight_map": dict.fromkeys(mixture(), place.format("model-00001-of-00001.safetensors"))}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))

    refusal(tmp_path, CheckpointError, "not a file of this folder")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"shape": [8, 9]}, "128 bytes where its shape and dtype need 144"),
        ({"data_offsets": [0, 2**40]}, "1099511627776 bytes where"),
        ({"shape": [8, 2**36], "data_offsets": [0, 2**40]}, "truncated"),
        ({"dtype": "F3"}, "dtype 'F3'"),
    ],
)
def test_a_shard_that_lies_of_a_tensor_is_refused(entry, said, tmp_path):
    write(tmp_path / "model", [{"a.q_proj.weight": randn(8, 8)}])
    path = tmp_path / "model" / "model-00001-of-00001.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["a.q_proj.weight"] |= entry
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    refusal(tmp_path, CheckpointError, f"model-00001-of-00001.safetensors.*{said}")


def test_a_tensor_that_the_index_places_elsewhere_is_named(tmp_path, caplog):
    write(tmp_path / "model", [mixture() | {"spare": randn(4)}])
    index = tmp_path / "model" / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    del said["weight_map"]["spare"]
    index.write_text(json.dumps(said))

    model_free_ptq(tmp_path / "model", tmp_path / "out", scheme="W8A8", quiet=True)

    assert "spare" not in tensors_of(tmp_path / "out")
    assert "1 tensors do not come along" in caplog.text
    assert "spare in" in caplog.text


def test_an_index_that_lies_is_refused(tmp_path):
    write(tmp_path / "model", [mixture()])
    index = tmp_path / "model" / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["weight_map"]["model.layers.9.q_proj.weight"] = "model-00001-of-00001.safetensors"
    index.write_text(json.dumps(said))

    refusal(tmp_path, CheckpointError, r"model.layers.9.q_proj.weight.*it does not")


def test_a_tensor_in_two_files_is_refused(tmp_path):
    write(tmp_path / "model", [mixture(), {"lm_head.weight": randn(256, 128)}])
    (tmp_path / "model" / "model.safetensors.index.json").unlink()

    refusal(tmp_path, CheckpointError, "both hold tensor 'lm_head.weight'")


def test_a_layer_of_whole_numbers_without_a_word_in_the_configuration_is_refused(tmp_path):
    write(tmp_path / "model", [{"a.q_proj.weight": torch.zeros(8, 8, dtype=torch.int8)}])

    refusal(tmp_path, CheckpointError, "'a.q_proj.weight' has the dtype int8")


@pytest.mark.parametrize("inside", [False, True])
def test_unknown_quantization_is_refused(inside, tmp_path):
    said = {"quantization_config": {"quant_method": "compresed-tensors"}}
    write(tmp_path / "model", [mixture()], {"text_config": said} if inside else said)

    refusal(tmp_path, ModelError, "says 'compresed-tensors', which no installed format or source reads; did you mean")


def test_a_model_that_is_not_there_is_refused(tmp_path):
    refusal(tmp_path, ModelError, "is not there", source=tmp_path / "nowhere" / "at" / "all")


def test_a_checkpoint_without_tensors_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    save_file({}, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_text("{}")

    refusal(tmp_path, CheckpointError, "model has no tensors", scheme="W8A8")
    with pytest.raises(CheckpointError, match="model has no tensors"):
        convert(tmp_path / "model", tmp_path / "out", quiet=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ignore": 5}, "ignore must be names"),
        ({"ignore": {"lm_head": True}}, "ignore must be names"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"seed": True}, "seed must be a whole number"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"scheme": 5}, "a scheme is the name of a preset, a Scheme or a table"),
        ({"scheme": None, "config": {"config_groups": {"W8A8": ["Linear"]}}}, "a scheme is the name of a preset"),
        ({"scheme": {"weights": None}}, "a scheme needs weights"),
        ({"scheme": None, "config": {"config_groups": {}}}, "config must have config_groups"),
        ({"scheme": None}, "got none"),
        ({"format": 5}, "format must be the name of a checkpoint format"),
        ({"max_workers": 0}, "max_workers must be a number"),
    ],
)
def test_arguments_of_another_type_are_refused_by_name(settings, said, tmp_path):
    write(tmp_path / "model", [mixture()])

    refusal(tmp_path, ArgumentError, said, **settings)


@pytest.mark.parametrize("table", [{}, {"targets": []}, {"targets": None}])
def test_a_scheme_without_targets_means_linear_layers(table, tmp_path):
    write(tmp_path / "model", [mixture()])
    weights = {"num_bits": 8, "strategy": "channel"}

    for name, targets in (("out", table), ("linear", {"targets": ["Linear"]})):
        model_free_ptq(tmp_path / "model", tmp_path / name, scheme={**targets, "weights": weights}, quiet=True)

    assert files_of(tmp_path / "out").keys() == files_of(tmp_path / "linear").keys()
    assert differing(tensors_of(tmp_path / "out"), tensors_of(tmp_path / "linear")) == []


# --- values


def test_infinity_in_what_may_be_a_mask_is_copied(tmp_path):
    mask = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), float("-inf"))
    write(tmp_path / "model", [mixture() | {"a.masked_bias": torch.tensor(float("-inf")), "a.causal_mask": mask}])

    model_free_ptq(tmp_path / "model", tmp_path / "out", scheme="W8A8", quiet=True)

    found = tensors_of(tmp_path / "out")
    assert found["a.masked_bias"] == float("-inf")
    assert torch.equal(found["a.causal_mask"], mask)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("a.norm.weight", float("inf"), "1 Inf"),
        ("a.q_proj.bias", float("-inf"), "1 Inf"),
        ("a.mask", float("nan"), "1 NaN"),
    ],
)
def test_values_that_are_no_numbers_are_refused_by_name(name, value, said, tmp_path):
    write(tmp_path / "model", [mixture() | {name: torch.tensor([1.0, value])}])

    with pytest.raises(NumericsError, match=f"'{name}' holds {said} among its 2 values"):
        model_free_ptq(tmp_path / "model", tmp_path / "out", scheme="W8A8", quiet=True)
    assert not (tmp_path / "out").exists()


# --- a disk that fills


def full_at(monkeypatch, call, number):
    """The disk is full at this call of this function of `os`."""
    own, calls = getattr(os, call), []

    def full(*arguments, **settings):
        calls.append(arguments)
        if len(calls) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        return own(*arguments, **settings)

    monkeypatch.setattr(os, call, full)


@pytest.mark.parametrize(("call", "number"), [("posix_fallocate", 3), ("pwrite", 20), ("fsync", 4)])
def test_a_disk_that_fills_leaves_no_output_and_the_run_goes_on(call, number, folder, tmp_path, monkeypatch):
    settings = {"scheme": "W8A8", "max_workers": 1, "quiet": True}
    model_free_ptq(folder, tmp_path / "whole", **settings)
    with monkeypatch.context() as patched:
        full_at(patched, call, number)
        with pytest.raises(CheckpointError, match="the disk is full"):
            model_free_ptq(folder, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()

    model_free_ptq(folder, tmp_path / "out", **settings)

    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
