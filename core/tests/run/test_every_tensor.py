"""NaN and infinity are found before the first stage where that is requested; later, it is said how far the run was."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from coldpress import model_free_ptq, oneshot
from coldpress.cli.app import app
from coldpress.errors import NumericsError
from coldpress.modifiers import QuantizationModifier
from coldpress.testing.models import tiny_llama, tiny_tokenizer

DAMAGED = ("model.layers.1.mlp.up_proj.weight", "model.norm.weight")
ROUNDING = QuantizationModifier(scheme="FP8_DYNAMIC", ignore=["lm_head"])


@pytest.fixture
def folder(tmp_path):
    """A model two tensors of which are damaged."""
    tiny_llama(hidden=32).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    change(tmp_path / "model", {DAMAGED[0]: float("nan"), DAMAGED[1]: float("inf")})
    return tmp_path / "model"


def change(folder, values):
    """Give the first number of tensors a value; those that are not there are added."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, value in values.items():
        tensors.setdefault(name, torch.ones(4)).view(-1)[0] = value
    save_file(tensors, file, metadata={"format": "pt"})


def test_every_damaged_tensor_is_named_and_nothing_is_written(folder, tmp_path):
    with pytest.raises(NumericsError) as found:
        oneshot(folder, ROUNDING, output_dir=tmp_path / "out", check_tensors=True)

    assert all(f"tensor {name!r} holds 1 " in str(found.value) for name in DAMAGED)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_in_memory_is_looked_at_before_it_changes(folder):
    model = tiny_llama(hidden=32)
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
        model.model.norm.weight[0] = float("inf")

    with pytest.raises(NumericsError) as found:
        oneshot(model, ROUNDING)

    assert all(name in str(found.value) for name in DAMAGED)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, before)


def test_a_run_that_finds_damage_late_says_how_far_it_was(folder, tmp_path):
    with pytest.raises(NumericsError, match=r"up_proj.*\nfound after 2 of 4 stages.*check_tensors=True"):
        oneshot(folder, ROUNDING, output_dir=tmp_path / "out")


def test_tensors_beside_the_model_are_warned_of(tmp_path, caplog):
    tiny_llama(hidden=32).save_pretrained(tmp_path / "model")
    change(tmp_path / "model", {"model.mask": float("-inf")})

    oneshot(tmp_path / "model", ROUNDING, output_dir=tmp_path / "out", check_tensors=True)

    assert "tensor 'model.mask' holds 1 Inf" in caplog.text


def test_without_a_model_too(folder, tmp_path):
    with pytest.raises(NumericsError) as found:
        model_free_ptq(folder, tmp_path / "out", "FP8_DYNAMIC", ignore=["lm_head"], check_tensors=True)

    assert all(name in str(found.value) for name in DAMAGED)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("more", [[], ["--model-free"]])
def test_the_terminal_has_an_option(folder, tmp_path, more):
    command = ["compress", str(folder), "-s", "FP8_DYNAMIC", "-o", str(tmp_path / "out"), "--check-tensors", *more]

    done = CliRunner().invoke(app, command)

    assert done.exit_code == 2
    assert all(name in done.output for name in DAMAGED)
