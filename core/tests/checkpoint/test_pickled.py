"""Weights in `.bin` files: read like safetensors files, damage told like theirs."""

import json

import pytest
import torch

from coldpress.checkpoint.pickled import PickledReader, open_files
from coldpress.errors import CheckpointError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(1)}


def shards(folder):
    table = {}
    for number, names in enumerate((["a", "c"], ["b"])):
        file = f"pytorch_model-{number + 1:05}-of-00002.bin"
        torch.save({name: TENSORS[name] for name in names}, folder / file)
        table |= dict.fromkeys(names, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))
    return folder


@pytest.mark.parametrize("form", ["one file", "of before 2020", "shards"])
def test_every_tensor_is_read_as_it_was_saved(form, tmp_path):
    if form == "shards":
        shards(tmp_path)
    else:
        torch.save(TENSORS, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=form == "one file")

    reader = open_files(tmp_path)

    reader.check()
    assert reader.names() == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(reader.read(name), tensor)
        assert (reader.shape(name), reader.dtype(name)) == (tuple(tensor.shape), tensor.dtype)


def test_safetensors_files_come_first(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")

    assert not isinstance(open_files(tmp_path), PickledReader)


def truncate(folder):
    path = folder / "pytorch_model-00001-of-00002.bin"
    path.write_bytes(path.read_bytes()[:300])


def lose(folder):
    (folder / "pytorch_model-00002-of-00002.bin").unlink()


def promise(folder):
    path = folder / "pytorch_model.bin.index.json"
    table = json.loads(path.read_text())["weight_map"]
    path.write_text(json.dumps({"weight_map": {**table, "d": "pytorch_model-00001-of-00002.bin"}}))


def nest(folder):
    torch.save({"state_dict": TENSORS}, folder / "pytorch_model-00001-of-00002.bin")


DAMAGED = {
    truncate: "pytorch_model-00001-of-00002.bin cannot be read",
    lose: "lacks pytorch_model-00002-of-00002.bin",
    promise: "holds tensor 'd', and it does not",
    nest: "no table from names to tensors",
}


@pytest.mark.parametrize("damage", DAMAGED, ids=lambda damage: damage.__name__)
def test_damage_is_named(damage, tmp_path):
    damage(shards(tmp_path))

    with pytest.raises(CheckpointError, match=DAMAGED[damage]):
        open_files(tmp_path).check()


def test_a_name_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no tensor 'aa'"):
        open_files(shards(tmp_path)).read("aa")
