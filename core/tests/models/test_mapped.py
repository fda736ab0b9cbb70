"""Weights that are mapped from a file, and what becomes of them."""

import pytest
import torch
from safetensors.torch import safe_open, save_file
from torch import nn

from coldpress import load_model
from coldpress.models import mapped
from coldpress.models.mapped import own_memory
from coldpress.testing.models import tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.skipif(not mapped._MAPS.exists(), reason="asks the system where memory is")


def is_mapped(x):
    return mapped._is_inside(x, mapped._mapped_files())


class Holder(nn.Module):
    """Tensors of a file as parameters."""

    def __init__(self, path):
        super().__init__()
        with safe_open(path, "pt") as file:
            whole = file.get_tensor("whole")
            self.alone = nn.Parameter(file.get_tensor("alone"))
        self.tied = self.alone
        self.whole, self.part, self.end = nn.Parameter(whole), nn.Parameter(whole[1:3]), nn.Parameter(whole[4:])


@pytest.fixture
def holder(tmp_path):
    tensors = {"alone": torch.randn(4096, 3), "whole": torch.randn(4096, 5)}
    save_file(tensors, tmp_path / "x.safetensors")
    return tensors, Holder(tmp_path / "x.safetensors")


def test_a_parameter_gets_memory_of_its_own_and_stays_tied(holder):
    tensors, model = holder
    assert is_mapped(model.alone)

    own_memory(model)

    assert not is_mapped(model.alone)
    assert model.tied is model.alone
    assert torch.equal(model.alone, tensors["alone"])


def test_parameters_that_share_bytes_still_do(holder):
    _, model = holder

    own_memory(model)
    with torch.no_grad():
        model.whole.zero_()

    assert not model.part.any()
    assert not model.end.any()


def test_pages_that_are_let_go_still_say_what_the_file_does(holder):
    tensors, model = holder
    before = model.alone.data

    own_memory(model)

    assert torch.equal(before, tensors["alone"])


def test_a_model_that_is_loaded_is_not_mapped(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)

    assert not any(is_mapped(weight) for weight in load_model(tmp_path, device="cpu").parameters())


def test_a_model_that_is_larger_than_half_of_the_free_memory_stays_mapped(holder, monkeypatch, tmp_path):
    _, model = holder
    (tmp_path / "memory").write_text("MemTotal:  900 kB\nMemAvailable:     95 kB\n")
    monkeypatch.setattr(mapped, "_MEMORY", tmp_path / "memory")

    own_memory(model)

    assert is_mapped(model.alone)
    assert model.alone.nbytes == 48 * 1024


def test_where_the_system_does_not_say_nothing_is_moved(holder, monkeypatch, tmp_path):
    _, model = holder
    for name in ("_MAPS", "_MEMORY"):  # as on systems other than Linux
        monkeypatch.setattr(mapped, name, tmp_path / "none")
    before = model.alone.data_ptr()

    own_memory(model)

    assert model.alone.data_ptr() == before
