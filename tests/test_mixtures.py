"""Mixtures of other layouts from folders: streamed, solved, and read again; or refused before any work."""

import json
import re

import pytest
import torch

from coldpress import CalibrationError, ModelError, load_model, oneshot
from coldpress.testing.mixtures import tiny_mixture
from coldpress.testing.models import batches
from coldpress_gptq import GPTQModifier

IGNORE = ["lm_head", "re:.*(gate|router.*)$"]


def data(model):
    found = batches(rows=16)
    if not model.config.is_encoder_decoder:
        return found
    return [{**one, "decoder_input_ids": one["input_ids"]} for one in found]


@torch.no_grad()
def answer(model):
    return model.eval()(**data(model)[0])["logits"]


@pytest.mark.parametrize("kind", ["deepseek_v3", "switch"])
def test_a_folder_is_streamed_and_transformers_reads_what_was_returned(kind, tmp_path):
    model, modifier = tiny_mixture(kind), GPTQModifier(scheme="W4A16", group_size=32, ignore=IGNORE)
    model.save_pretrained(tmp_path / "source")
    settings = {"dataset": data(model), "quiet": True}
    oneshot(model, modifier, output_dir=tmp_path / "memory", **settings)

    found = oneshot(str(tmp_path / "source"), modifier, output_dir=tmp_path / "out", stream_weights=True, **settings)

    theirs, info = type(found).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(answer(theirs), answer(found))
    memory, out = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("memory", "out"))
    assert memory == out


OTHER_SHAPES = ["dbrx", "jetmoe", "inkling", "inkling2"]


@pytest.mark.parametrize("kind", OTHER_SHAPES)
def test_experts_of_other_shapes_are_solved_and_go_back_into_their_own_form(kind, tmp_path):
    """All experts in one matrix, one projection a module, shared ones with weights of their own, sums in float32."""
    model = tiny_mixture(kind)
    modifier = GPTQModifier(scheme="W4A16", group_size=32, ignore=[*IGNORE, "re:.*router.layer"])
    found = oneshot(
        model, modifier, dataset=data(model), save_compressed=False, output_dir=tmp_path / "out", quiet=True
    )

    theirs, info = type(found).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(answer(theirs), answer(found), rtol=1e-6, atol=1e-6)
    lines = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["layers"]
    inside = [line for line in lines if re.search(r"\.\d+\.(gate_proj|up_proj|down_proj|proj)$", line["name"])]
    assert inside
    assert {line["status"] for line in inside} == {"quantized"}


@pytest.mark.parametrize("kind", OTHER_SHAPES)
def test_a_compressed_checkpoint_of_other_shapes_is_read_again_and_streamed(kind, tmp_path):
    tiny_mixture(kind).save_pretrained(tmp_path / "source")
    modifier = GPTQModifier(scheme="W4A16", group_size=32, ignore=[*IGNORE, "re:.*router.layer"])
    settings = {"dataset": data(tiny_mixture(kind)), "quiet": True}
    oneshot(tiny_mixture(kind), modifier, output_dir=tmp_path / "memory", **settings)

    found = oneshot(str(tmp_path / "source"), modifier, output_dir=tmp_path / "out", stream_weights=True, **settings)

    torch.testing.assert_close(answer(load_model(tmp_path / "out")), answer(found), rtol=1e-6, atol=1e-6)
    memory, out = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("memory", "out"))
    assert memory == out


def test_padding_that_cannot_be_told_from_tokens_is_refused():
    """JetMoE's experts are called with tokens sorted by expert."""
    padded = batches(rows=4, batch_size=2)
    for batch in padded:
        batch["attention_mask"][1, 10:] = 0
    modifier = GPTQModifier(scheme="W4A16", group_size=32, ignore=[*IGNORE, "re:.*router.layer"])

    with pytest.raises(CalibrationError, match="which of them are padding is not known"):
        oneshot(tiny_mixture("jetmoe"), modifier, dataset=padded, quiet=True)


def test_experts_that_pass_tokens_on_are_refused_with_what_to_ignore(tmp_path):
    """LongCat's, of which some have no weights, in a tensor that has rows for them."""
    model = tiny_mixture("longcat")
    settings = {"dataset": data(model), "quiet": True}

    with pytest.raises(ModelError, match=r"\.mlp\.experts: its tensors are of different numbers of experts"):
        oneshot(model, GPTQModifier(scheme="W4A16", group_size=32), output_dir=tmp_path / "out", **settings)

    assert not (tmp_path / "out").exists()
    ignore = [*IGNORE, "re:.*router.*", "LongcatFlashExperts"]
    modifier = GPTQModifier(scheme="W4A16", group_size=32, ignore=ignore)
    found = oneshot(model, modifier, output_dir=tmp_path / "out", **settings)
    theirs = type(found).from_pretrained(tmp_path / "out")
    assert torch.equal(answer(theirs), answer(found))
