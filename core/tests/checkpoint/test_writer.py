import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import coldpress.checkpoint.writer as writer_module
from coldpress.checkpoint import CheckpointReader, CheckpointWriter
from coldpress.checkpoint.journal import NAME
from coldpress.checkpoint.shard import write_shard
from coldpress.errors import ArgumentError, CheckpointError


def tensors(count=5):
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{i}": torch.randn(4, 8, generator=generator) for i in range(count)}


def write(output, content, **settings):
    with CheckpointWriter(output, **settings) as writer:
        writer.add(content)
        writer.finish()


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_written_is_read_again(tmp_path):
    write(tmp_path / "out", tensors())

    reader = CheckpointReader(tmp_path / "out")
    reader.check()
    assert [path.name for path in reader.files] == ["model.safetensors"]
    assert all(torch.equal(reader.get(name), tensor) for name, tensor in tensors().items())
    assert os.listdir(tmp_path) == ["out"]


def test_the_bytes_are_those_of_the_library(tmp_path):
    content = {
        "odd": torch.arange(3, dtype=torch.uint8),
        "wide": torch.tensor([1, 2]),
        "half": torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "ü": torch.ones(2),
        "codes": torch.ones(5).to(torch.float8_e4m3fn),
    }

    write_shard(tmp_path / "ours", content)
    save_file(content, tmp_path / "theirs", metadata={"format": "pt"})

    ours, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
    assert {name: tensor.tolist() for name, tensor in ours.items()} == {n: t.tolist() for n, t in theirs.items()}
    assert (tmp_path / "ours").stat().st_size == (tmp_path / "theirs").stat().st_size


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([torch.uint8, torch.bfloat16, torch.float32, torch.int64]), st.integers(0, 9)),
        max_size=8,
    ),
    st.integers(1, 100),
)
def test_any_tensors_in_any_shard_size_come_back(tmp_path_factory, kinds, max_shard_size):
    output = tmp_path_factory.mktemp("any") / "out"
    content = {f"t{i}": torch.arange(count).to(dtype) for i, (dtype, count) in enumerate(kinds)}

    write(output, content, max_shard_size=max_shard_size)

    reader = CheckpointReader(output)
    reader.check()
    assert reader.names() == sorted(content)
    assert all(torch.equal(reader.get(name), tensor) for name, tensor in content.items())


def test_shards_stay_below_the_limit_and_the_index_names_them(tmp_path):
    write(tmp_path / "out", tensors(5), max_shard_size=300)  # a tensor has 128 bytes

    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(os.listdir(tmp_path / "out")) == [*names, "model.safetensors.index.json"]
    assert index["metadata"] == {"total_size": 5 * 128}
    assert index["weight_map"]["layer.4"] == names[2]
    CheckpointReader(tmp_path / "out").check()


def test_a_shard_is_on_disk_as_soon_as_it_is_full(tmp_path):
    with CheckpointWriter(tmp_path / "out", max_shard_size=300) as writer:
        writer.add(tensors(3))

        assert len(list(writer.partial.glob("*.safetensors"))) == 1


def test_a_tensor_above_the_limit_has_its_own_file(tmp_path):
    write(
        tmp_path / "out", {"small": torch.zeros(1), "big": torch.zeros(100), "last": torch.zeros(1)}, max_shard_size=8
    )

    assert len(CheckpointReader(tmp_path / "out").files) == 3


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 MiB", 1572864), (" 20kb ", 20000), (7, 7), ("12", 12), ("3B", 3)]
)
def test_sizes_are_numbers_or_have_units(tmp_path, text, size):
    assert CheckpointWriter(tmp_path / "out", max_shard_size=text).max_shard_size == size


@pytest.mark.parametrize("text", ["five", "5 parsecs", 0, -1, "0GB", True, "", "5IB", None])
def test_what_is_no_size_is_refused(tmp_path, text):
    with pytest.raises(ArgumentError, match="max_shard_size"):
        CheckpointWriter(tmp_path / "out", max_shard_size=text)


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, tensors(), max_shard_size=300)

    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_views_and_tied_tensors_are_written_in_full(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)

    write(tmp_path / "out", {"transposed": base.t(), "slice": base[:, 1:3], "again": base, "one": base[2:, 3:]})

    reader = CheckpointReader(tmp_path / "out")
    assert torch.equal(reader.get("one"), torch.tensor([[11.0]]))
    assert torch.equal(reader.get("transposed"), base.t())
    assert torch.equal(reader.get("slice"), base[:, 1:3])
    assert torch.equal(reader.get("again"), base)


def test_one_element_with_an_odd_stride_is_written(tmp_path):
    write(tmp_path / "out", {"x": torch.zeros(1, 4).T[:1]})

    assert CheckpointReader(tmp_path / "out").get("x").shape == (1, 1)


@pytest.mark.parametrize("limit", [100, 10**6])
def test_a_name_that_comes_twice_is_refused(tmp_path, limit):
    with CheckpointWriter(tmp_path / "out", max_shard_size=limit) as writer:
        writer.add(tensors(2))

        with pytest.raises(CheckpointError, match=r"'layer\.0' is written twice"):
            writer.add(tensors(1))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(2, device="meta"), "no data"),
        (torch.zeros(2, dtype=torch.complex128), "cannot hold"),
        (torch.eye(2).to_sparse(), "cannot hold"),
    ],
)
def test_what_safetensors_cannot_hold_is_named(tmp_path, tensor, reason):
    with CheckpointWriter(tmp_path / "out") as writer, pytest.raises(CheckpointError, match=f"'x'.*{reason}"):
        writer.add({"x": tensor})


def test_small_files_come_along(tmp_path):
    with CheckpointWriter(tmp_path / "out") as writer:
        writer.add(tensors(1))
        writer.write_text("sub/note.txt", "grüß\n")
        writer.write_json("config.json", {"b": 1, "a": None})
        writer.path("raw.bin").write_bytes(b"\0")
        writer.finish()

    assert (tmp_path / "out/sub/note.txt").read_text(encoding="utf-8") == "grüß\n"
    assert (tmp_path / "out/config.json").read_text() == '{\n  "b": 1,\n  "a": null\n}\n'
    assert not (tmp_path / "out" / NAME).exists()


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/x", "a/../../b", ".", ""])
def test_a_file_outside_the_folder_is_refused(tmp_path, name):
    with CheckpointWriter(tmp_path / "out") as writer, pytest.raises(CheckpointError, match="inside the checkpoint"):
        writer.write_text(name, "")


class StopError(Exception):
    pass


def write_and_raise(output, error, **settings):
    with CheckpointWriter(output, **settings) as writer:
        writer.add(tensors())
        raise error


@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_behind(tmp_path, error):
    with pytest.raises(error):
        write_and_raise(tmp_path / "out", error, max_shard_size=300)

    assert os.listdir(tmp_path) == []


def test_leaving_without_finish_leaves_nothing_behind(tmp_path):
    with CheckpointWriter(tmp_path / "out") as writer:
        writer.add(tensors())

    assert os.listdir(tmp_path) == []


def test_looking_at_an_output_creates_nothing(tmp_path):
    CheckpointWriter(tmp_path / "a" / "b" / "out")

    assert os.listdir(tmp_path) == []


def test_folders_on_the_way_are_made(tmp_path):
    write(tmp_path / "a" / "b" / "out", tensors(1))

    assert (tmp_path / "a/b/out/model.safetensors").is_file()


def test_an_empty_output_folder_is_used(tmp_path):
    (tmp_path / "out").mkdir()

    write(tmp_path / "out", tensors(1))

    assert (tmp_path / "out/model.safetensors").is_file()


def test_an_output_that_exists_is_refused_before_any_work(tmp_path):
    write(tmp_path / "out", tensors(1))
    before = files(tmp_path)

    with pytest.raises(CheckpointError, match=r"exists and is not empty; pass overwrite=True \(--overwrite\)"):
        CheckpointWriter(tmp_path / "out")
    assert files(tmp_path) == before


def test_overwriting_replaces_the_whole_folder(tmp_path):
    write(tmp_path / "out", tensors(5), max_shard_size=300)

    write(tmp_path / "out", tensors(1), overwrite=True)

    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]


def test_the_old_checkpoint_stays_when_the_new_one_fails(tmp_path):
    write(tmp_path / "out", tensors(1))
    before = files(tmp_path)

    with pytest.raises(StopError):
        write_and_raise(tmp_path / "out", StopError, overwrite=True)

    assert files(tmp_path) == before


def test_a_checkpoint_may_replace_the_one_it_is_read_from(tmp_path):
    write(tmp_path / "out", tensors(2))
    reader = CheckpointReader(tmp_path / "out")

    write(tmp_path / "out", {name: reader.get(name).neg() for name in reader.names()}, overwrite=True)

    assert torch.equal(CheckpointReader(tmp_path / "out").get("layer.1"), -tensors(2)["layer.1"])


def test_a_folder_that_is_no_checkpoint_is_never_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()

    with pytest.raises(CheckpointError, match="is not a checkpoint, so it is not overwritten"):
        CheckpointWriter(tmp_path / "out", overwrite=True)


def test_the_working_folder_is_never_overwritten(tmp_path, monkeypatch):
    write(tmp_path / "out", tensors(1))
    monkeypatch.chdir(tmp_path / "out")

    with pytest.raises(CheckpointError, match="holds the working or home folder"):
        CheckpointWriter(".", overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_place_of_the_output_is_refused(tmp_path, overwrite):
    (tmp_path / "out").touch()

    with pytest.raises(CheckpointError, match="is a file; a checkpoint is a folder"):
        CheckpointWriter(tmp_path / "out", overwrite=overwrite)


def test_a_file_on_the_way_to_the_output_is_refused(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(CheckpointError, match="file is a file"):
        CheckpointWriter(tmp_path / "file" / "out")


def test_the_root_is_refused():
    with pytest.raises(CheckpointError, match="not a folder that a checkpoint can be written to"):
        CheckpointWriter("/")


def test_a_parent_without_permission_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module.os, "access", lambda path, mode: False)  # the tests may run as root

    with pytest.raises(CheckpointError, match="no permission to write in"):
        CheckpointWriter(tmp_path / "out")


def test_what_an_interrupted_run_left_is_replaced(tmp_path):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / NAME).touch()
    (partial / "part-00001.safetensors").write_bytes(b"half")

    write(tmp_path / "out", tensors(1))

    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]


def test_a_partial_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").touch()

    with pytest.raises(CheckpointError, match=r"out\.partial is in the way and was not left by"):
        CheckpointWriter(tmp_path / "out")
    assert (tmp_path / "out.partial" / "mine").exists()


def test_two_runs_to_one_output_do_not_meet(tmp_path):
    script = "import sys; from coldpress.checkpoint import CheckpointWriter; CheckpointWriter(sys.argv[1])"
    with CheckpointWriter(tmp_path / "out"):
        other = subprocess.run([sys.executable, "-c", script, tmp_path / "out"], capture_output=True, text=True)

    assert "another run is writing" in other.stderr


def test_a_run_killed_between_its_renames_gives_the_old_checkpoint_back(tmp_path):
    write(tmp_path / "out", tensors(1))
    (tmp_path / "out").rename(tmp_path / "out.replaced-by-coldpress")

    with pytest.raises(CheckpointError, match="exists and is not empty"):
        CheckpointWriter(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def make_folder(path):
    path.mkdir()
    (path / "other").touch()


@pytest.mark.parametrize("take", [make_folder, lambda path: path.touch()], ids=["folder", "file"])
def test_a_finished_checkpoint_is_kept_when_its_place_is_taken(tmp_path, take):
    with CheckpointWriter(tmp_path / "out") as writer:
        writer.add(tensors(1))
        take(tmp_path / "out")
        with pytest.raises(CheckpointError, match=r"out\.partial"):
            writer.finish()

    CheckpointReader(tmp_path / "out.partial" / "checkpoint").check()


@pytest.mark.parametrize(
    ("broken", "call"),
    [
        ("write_shard", lambda writer: writer.add({"x": torch.zeros(9)})),
        ("sync_tree", lambda writer: writer.finish()),
        ("write_shards", lambda writer: writer.finish()),
    ],
)
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch, broken, call):
    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with CheckpointWriter(tmp_path / "out", max_shard_size=1) as writer:
        writer.add(tensors(1))
        monkeypatch.setattr(writer_module, broken, full)
        with pytest.raises(CheckpointError, match="the disk is full"):
            call(writer)
        monkeypatch.undo()

    assert os.listdir(tmp_path) == []


def test_a_writer_is_used_once_and_inside_with(tmp_path):
    writer = CheckpointWriter(tmp_path / "out")
    with pytest.raises(RuntimeError, match="is new"):
        writer.add(tensors(1))

    with writer:
        writer.finish()
        with pytest.raises(RuntimeError, match="is finished"):
            writer.add(tensors(1))
