"""Codes are moved from format to format, bit for bit, without the model; where they cannot be, it is refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from coldpress import CheckpointError, SchemeError, convert, load_model, model_free_ptq, oneshot
from coldpress.testing.models import batches, logits, tiny_llama, tiny_tokenizer


def compress(output, scheme, form):
    recipe = f"QuantizationModifier: {{scheme: {scheme}, group_size: 32, ignore: [lm_head]}}\n"
    model = tiny_llama(hidden=128, dtype=torch.bfloat16)
    oneshot(model, recipe, output_dir=output, format=form, tokenizer=tiny_tokenizer(), quiet=True)


@pytest.mark.parametrize(
    ("scheme", "form"), [("W4A16", "gptq"), ("W8A16", "gptq"), ("W4A16_ASYM", "gptq"), ("W4A16_ASYM", "awq")]
)
def test_codes_go_there_and_back(tmp_path, scheme, form):
    compress(tmp_path / "before", scheme, "compressed-tensors")

    convert(tmp_path / "before", tmp_path / "there", form, quiet=True)
    convert(tmp_path / "there", tmp_path / "back", "compressed-tensors", quiet=True)

    data = batches(rows=2)
    assert torch.equal(logits(load_model(tmp_path / "there"), data), logits(load_model(tmp_path / "before"), data))
    before, back = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "back"))
    assert before.keys() == back.keys()
    assert all(torch.equal(tensor.float(), back[name].float()) for name, tensor in before.items())


@pytest.mark.parametrize(("scheme", "form"), [("W4A16", "gptq"), ("W4A16_ASYM", "awq")])
def test_a_scheme_that_another_format_has_already_is_not_rounded_again(scheme, form, tmp_path):
    compress(tmp_path / "before", scheme, form)
    recipe = f"QuantizationModifier: {{scheme: {scheme}, group_size: 32, ignore: [lm_head]}}\n"

    report = model_free_ptq(tmp_path / "before", tmp_path / "after", recipe=recipe, quiet=True)

    reasons = {line.reason for line in report.layers if line.status == "quantized"}
    assert reasons == {"kept as the checkpoint has it"}
    for name in ("before", "after"):
        convert(tmp_path / name, tmp_path / f"{name}-dense", "dense", quiet=True)
    before, after = (load_file(tmp_path / f"{name}-dense" / "model.safetensors") for name in ("before", "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_scales_that_float16_would_round_are_refused(tmp_path):
    compress(tmp_path / "before", "W4A16", "compressed-tensors")
    tensors = load_file(tmp_path / "before/model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight_scale"
    save_file(
        {**tensors, name: tensors[name] * 2.0**-24}, tmp_path / "before/model.safetensors", metadata={"format": "pt"}
    )

    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj: float16, in which GPTQFormat stores .*choose"):
        convert(tmp_path / "before", tmp_path / "there", "gptq", quiet=True)


def test_containers_that_need_the_model_are_refused(tmp_path):
    compress(tmp_path / "before", "W4A16", "compressed-tensors")

    with pytest.raises(SchemeError, match="which needs the model"):
        convert(tmp_path / "before", tmp_path / "there", "gguf", quiet=True)
