"""Mixtures of other layouts from folders: streamed, solved, and read again; or refused before any work."""

import pytest
import torch

from coldpress import ModelError, oneshot
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


def test_experts_in_one_matrix_are_refused_with_what_to_ignore(tmp_path):
    model = tiny_mixture("dbrx")
    settings = {"dataset": data(model), "quiet": True}

    with pytest.raises(ModelError, match=r"\.ffn\.experts\.mlp: .* for example with ignore=\['DbrxExpertGLU'\]"):
        oneshot(model, GPTQModifier(scheme="W4A16", group_size=32), output_dir=tmp_path / "out", **settings)

    assert not (tmp_path / "out").exists()
    modifier = GPTQModifier(scheme="W4A16", group_size=32, ignore=[*IGNORE, "re:.*router.layer", "DbrxExpertGLU"])
    found = oneshot(model, modifier, output_dir=tmp_path / "out", **settings)
    theirs = type(found).from_pretrained(tmp_path / "out")
    assert torch.equal(answer(theirs), answer(found))
