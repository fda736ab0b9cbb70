import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from coldpress.checkpoint import CheckpointReader
from coldpress.errors import CheckpointError


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(3, 5, generator=generator),
        "b.weight": torch.randn(2, 4, generator=generator).bfloat16(),
        "c.codes": torch.randn(7, generator=generator).to(torch.float8_e4m3fn),
        "d.empty": torch.zeros(0, 4, dtype=torch.int64),
    }


@pytest.fixture
def single(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def sharded(tmp_path, tensors):
    files = {"a.weight": 1, "b.weight": 2, "c.codes": 2, "d.empty": 1}
    weight_map = {name: f"model-0000{number}-of-00002.safetensors" for name, number in files.items()}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


def write_raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_every_tensor_comes_back_with_its_bits_shape_and_size(layout, tensors, request):
    reader = CheckpointReader(request.getfixturevalue(layout))

    reader.check()
    assert reader.names() == sorted(tensors)
    for name, tensor in tensors.items():
        assert reader.shape(name) == tuple(tensor.shape)
        assert reader.dtype(name) == tensor.dtype
        assert reader.nbytes(name) == tensor.nbytes
        assert torch.equal(reader.get(name).view(torch.uint8), tensor.view(torch.uint8))


def test_files_without_an_index_are_read_together(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "two.safetensors")

    assert CheckpointReader(tmp_path).names() == ["a", "b"]


def test_one_tensor_in_two_files_without_an_index_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "two.safetensors")

    with pytest.raises(CheckpointError, match=r"one\.safetensors and .*two\.safetensors both hold tensor 'a'"):
        CheckpointReader(tmp_path).check()


def test_an_unknown_name_is_met_with_a_near_one(single):
    with pytest.raises(CheckpointError, match=r"no tensor 'a\.weigth'; did you mean 'a\.weight'"):
        CheckpointReader(single).get("a.weigth")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        CheckpointReader(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "advice"), [("pytorch_model.bin", "convert its .bin"), ("m.gguf", "name the file"), ("x", "")]
)
def test_a_folder_without_safetensors_says_what_to_do(tmp_path, file, advice):
    (tmp_path / file).touch()

    with pytest.raises(CheckpointError, match=f"no safetensors file.*{advice}"):
        CheckpointReader(tmp_path)


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()

    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00002\.safetensors.*1 of 2"):
        CheckpointReader(sharded)


def test_an_index_that_promises_too_much_is_refused(sharded):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))

    with pytest.raises(CheckpointError, match="holds tensor 'ghost', and it does not"):
        CheckpointReader(sharded).check()


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", 3])
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path, file):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))

    with pytest.raises(CheckpointError, match="not a file of this folder"):
        CheckpointReader(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": []}', "{}"])
def test_an_index_that_is_no_index_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)

    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        CheckpointReader(tmp_path)


@pytest.mark.parametrize("cut", [1, 30, 70])
def test_a_file_cut_short_is_named(single, cut):
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-cut])

    with pytest.raises(CheckpointError, match=rf"model\.safetensors .*truncated: {cut} bytes"):
        CheckpointReader(single).check()


def test_a_file_cut_in_its_header_is_named(single):
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes()[:40])

    with pytest.raises(CheckpointError, match="truncated: its header"):
        CheckpointReader(single).check()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"abc", "length of a header"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\xff" * 100, "length of a header"),
        (struct.pack("<Q", 4) + b"nope", "not JSON"),
        (struct.pack("<Q", 2) + b"[]", "not a table"),
    ],
)
def test_what_is_no_safetensors_file_is_told_apart(tmp_path, content, reason):
    (tmp_path / "model.safetensors").write_bytes(content)

    with pytest.raises(CheckpointError, match=reason):
        CheckpointReader(tmp_path).check()


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, "'a' and 'b' overlap"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, "4 bytes before tensor 'b' belong to nothing"),
        ({"a": entry(0, 12)}, "12 bytes where its shape and dtype need 8"),
        ({"a": entry(0, 8)}, "12 bytes at its end belong to no tensor"),
        ({"a": entry(0, 8, dtype="F3")}, "dtype 'F3'"),
        ({"a": entry(0, 8, shape=(-1, -2))}, "not a whole number"),
        ({"a": {"dtype": "F32"}}, "incompletely"),
        ({"a": 3}, "incompletely"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, header, reason):
    write_raw(tmp_path / "model.safetensors", header, bytes(20))

    with pytest.raises(CheckpointError, match=reason):
        CheckpointReader(tmp_path).check()


def test_the_check_reads_no_tensor_data(tmp_path):
    path = tmp_path / "model.safetensors"
    size = 2**40  # more than any machine's memory; a sparse file takes no disk
    write_raw(path, {"a": entry(0, size, shape=(size // 4,))})
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)

    CheckpointReader(tmp_path).check()


def test_the_config_is_parsed_and_a_broken_one_is_named(single):
    (single / "config.json").write_text('{"model_type": "llama"}')
    assert CheckpointReader(single).config() == {"model_type": "llama"}

    (single / "config.json").write_text("{oops")
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        CheckpointReader(single).config()

    (single / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json: No such file"):
        CheckpointReader(single).config()
