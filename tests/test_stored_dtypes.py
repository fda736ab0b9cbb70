"""What is not compressed is written as it was stored, whatever dtype transformers loads it in."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from coldpress import load_model, oneshot
from coldpress.errors import CheckpointError
from coldpress.testing.models import batches, logits, tiny_llama, tiny_tokenizer

W4 = "QuantizationModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head]}"
NORM, HEAD = "model.layers.0.input_layernorm.weight", "lm_head.weight"


@pytest.fixture
def source(tmp_path):
    """A checkpoint of bfloat16, in which a norm and the head have more digits than that."""
    folder = tmp_path / "source"
    tiny_llama(dtype=torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in (NORM, HEAD):
        tensors[name] = tensors[name].float() + 0.00012345
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tensors(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("stream", [True, False])
def test_tensors_that_nothing_changes_keep_their_dtype_and_every_digit(source, tmp_path, stream):
    model = oneshot(str(source), W4, output_dir=tmp_path / "out", stream_weights=stream, quiet=True)
    model.save_pretrained(tmp_path / "later")
    pickle.loads(pickle.dumps(model)).save_pretrained(tmp_path / "pickle")

    before, after = tensors(source), tensors(tmp_path / "out")
    assert all(torch.equal(after[name], before[name]) for name in (NORM, HEAD))
    assert after["model.norm.weight"].dtype == torch.bfloat16
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert model.model.layers[0].input_layernorm.weight.dtype == torch.bfloat16
    content = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "later", "pickle")]
    assert content[0] == content[1] == content[2]
    assert torch.equal(logits(load_model(tmp_path / "out"), batches(rows=1)), logits(model, batches(rows=1)))


def test_what_a_run_changes_is_written_as_it_became(source, tmp_path):
    recipe = "MagnitudePruningModifier: {sparsity: 0.5, targets: [lm_head]}"

    oneshot(str(source), recipe, output_dir=tmp_path / "out", quiet=True)

    assert tensors(tmp_path / "out")[HEAD].dtype == torch.bfloat16
    assert torch.equal(tensors(tmp_path / "out")[NORM], tensors(source)[NORM])


def test_what_is_changed_after_a_run_is_written_as_it_became(source, tmp_path):
    model = oneshot(str(source), W4, quiet=True)
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight.mul_(2)

    model.save_pretrained(tmp_path / "changed")
    model.half().save_pretrained(tmp_path / "half")

    assert tensors(tmp_path / "changed")[NORM].dtype == torch.bfloat16
    assert torch.equal(tensors(tmp_path / "changed")[HEAD], tensors(source)[HEAD])
    assert tensors(tmp_path / "half")[HEAD].dtype == torch.float16


def test_a_precision_that_is_asked_for_is_that_of_every_tensor(source, tmp_path):
    oneshot(str(source), W4, precision="float16", output_dir=tmp_path / "out", quiet=True)

    assert {tensors(tmp_path / "out")[name].dtype for name in (NORM, HEAD)} == {torch.float16}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_whole_numbers_and_codes_in_place_of_weights_are_refused_by_name(source, tmp_path, dtype, stream):
    content = tensors(source)
    name = "model.layers.1.mlp.up_proj.weight"
    content[name] = content[name].to(dtype)
    save_file(content, source / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match=rf"{name}' has the dtype {str(dtype)[6:]}"):
        oneshot(str(source), W4, output_dir=tmp_path / "out", stream_weights=stream, quiet=True)
    assert not (tmp_path / "out").exists()
