import errno
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import coldpress.checkpoint.destination as destination_module
import coldpress.checkpoint.parts as parts_module
import coldpress.checkpoint.writer as writer_module
from coldpress.checkpoint import CheckpointReader, CheckpointWriter
from coldpress.checkpoint.journal import NAME
from coldpress.checkpoint.shard import write_shard
from coldpress.errors import ArgumentError, CheckpointError


def tensors(count=5):
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{i}": torch.randn(4, 8, generator=generator) for i in range(count)}


def write(output, content, *, manifest=None, **settings):
    with CheckpointWriter(output, **settings) as writer:
        writer.add(content)
        writer.finish(manifest)


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

    with pytest.raises(CheckpointError, match=r"exists and is not empty; pass overwrite=True"):
        CheckpointWriter(tmp_path / "out")
    assert files(tmp_path) == before


def test_overwriting_replaces_every_file_that_an_earlier_run_wrote(tmp_path):
    write(tmp_path / "out", tensors(5), max_shard_size=300, manifest={})

    write(tmp_path / "out", tensors(1), overwrite=True, manifest={"seed": 0})

    assert os.listdir(tmp_path) == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["manifest.json", "model.safetensors"]


def test_the_manifest_has_the_checksum_of_every_file(tmp_path):
    with CheckpointWriter(tmp_path / "out", max_shard_size=300) as writer:
        writer.add(tensors(5))
        writer.write_text("sub/note", "a")
        writer.finish({"seed": 0})

    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    content = {name: sha256(data).hexdigest() for name, data in files(tmp_path / "out").items()}
    assert manifest == {"seed": 0, "files": {name: content[name] for name in content if name != "manifest.json"}}


def test_overwriting_leaves_in_place_what_no_run_wrote(tmp_path):
    write(tmp_path / "out", tensors(1), manifest={})
    (tmp_path / "out" / "notes" / "deep").mkdir(parents=True)
    for name in ("thesis.txt", "notes/deep/a", "notes/model.safetensors"):
        (tmp_path / "out" / name).write_text("mine")
    (tmp_path / "out" / "link").symlink_to("nowhere")
    (tmp_path / "out" / "empty").mkdir()

    write(tmp_path / "out", tensors(2), overwrite=True, manifest={})

    assert os.listdir(tmp_path) == ["out"]
    mine = {name: data for name, data in files(tmp_path / "out").items() if data == b"mine"}
    assert set(mine) == {"thesis.txt", "notes/deep/a", "notes/model.safetensors"}
    assert (tmp_path / "out" / "link").is_symlink()
    assert (tmp_path / "out" / "empty").is_dir()
    assert CheckpointReader(tmp_path / "out").names() == ["layer.0", "layer.1"]


def test_overwriting_keeps_another_tools_checkpoint_beside_the_new_one(tmp_path, caplog):
    (tmp_path / "out").mkdir()
    save_file(tensors(1), tmp_path / "out" / "model-00001-of-00001.safetensors")
    (tmp_path / "out" / "manifest.json").write_text("[]")
    (tmp_path / "out" / "own").mkdir()
    before = files(tmp_path / "out")

    for kept in ("out.replaced", "out.replaced-2"):
        write(tmp_path / "out", tensors(2), overwrite=True, manifest={})
        assert files(tmp_path / kept) == before
        assert "did not write" in caplog.text
        assert (tmp_path / "out" / "own").is_dir()
        for name, data in before.items():
            (tmp_path / "out" / name).write_bytes(data)

    assert sorted(os.listdir(tmp_path)) == ["out", "out.replaced", "out.replaced-2"]


def test_a_file_of_ours_that_was_changed_is_its_users(tmp_path):
    write(tmp_path / "out", tensors(1), manifest={})
    save_file(tensors(3), tmp_path / "out" / "model.safetensors")
    changed = (tmp_path / "out" / "model.safetensors").read_bytes()

    write(tmp_path / "out", tensors(2), overwrite=True, manifest={})

    assert files(tmp_path / "out.replaced") == {"model.safetensors": changed}


def test_what_the_new_checkpoint_has_byte_by_byte_need_not_be_kept(tmp_path):
    write(tmp_path / "out", tensors(1))

    write(tmp_path / "out", tensors(1), overwrite=True, manifest={})

    assert os.listdir(tmp_path) == ["out"]


def test_a_run_killed_before_it_had_put_back_what_was_beside_the_old_checkpoint_is_ended_by_the_next(
    tmp_path, monkeypatch
):
    write(tmp_path / "out", tensors(1), manifest={})
    (tmp_path / "out" / "thesis.txt").touch()
    monkeypatch.setattr(destination_module, "settle", lambda old, new: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", tensors(2), overwrite=True, manifest={})
    monkeypatch.undo()

    with pytest.raises(CheckpointError, match="exists and is not empty"):
        CheckpointWriter(tmp_path / "out")

    assert os.listdir(tmp_path) == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["manifest.json", "model.safetensors", "thesis.txt"]


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


def working(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "out")


def working_below(tmp_path, monkeypatch):
    (tmp_path / "out" / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "out" / "sub")


def mounted(tmp_path, monkeypatch):
    monkeypatch.setattr(destination_module.os.path, "ismount", lambda path: path == tmp_path / "out")


FIXED = pytest.mark.parametrize("fix", [working, working_below, mounted])


@FIXED
def test_a_folder_that_cannot_be_renamed_is_filled(tmp_path, monkeypatch, fix):
    (tmp_path / "out").mkdir()
    inode = (tmp_path / "out").stat().st_ino
    fix(tmp_path, monkeypatch)
    (tmp_path / "out" / "thesis.txt").touch()
    write(tmp_path / "out", tensors(1), manifest={}, overwrite=True, any_folder=True)
    write(tmp_path / "out", tensors(2), manifest={}, overwrite=True)

    monkeypatch.undo()
    assert (tmp_path / "out").stat().st_ino == inode
    assert os.listdir(tmp_path) == ["out"]
    assert set(os.listdir(tmp_path / "out")) - {"sub"} == {"manifest.json", "model.safetensors", "thesis.txt"}
    assert CheckpointReader(tmp_path / "out").names() == ["layer.0", "layer.1"]


@FIXED
@pytest.mark.parametrize("moves", range(6))
def test_a_run_that_is_killed_while_a_folder_is_filled_is_ended_by_the_next(tmp_path, monkeypatch, fix, moves):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", tensors(1), manifest={})
    fix(tmp_path, monkeypatch)
    (tmp_path / "out" / "thesis.txt").touch()
    move, done = shutil.move, []

    def killed(source, target):
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(move(source, target))

    monkeypatch.setattr(destination_module.shutil, "move", killed)
    with suppress(KeyboardInterrupt):
        write(tmp_path / "out", tensors(2), manifest={}, overwrite=True)
    monkeypatch.setattr(destination_module.shutil, "move", move)

    with pytest.raises(CheckpointError, match="exists and is not empty"):
        CheckpointWriter(tmp_path / "out")
    assert set(os.listdir(tmp_path / "out")) - {"sub"} == {"manifest.json", "model.safetensors", "thesis.txt"}
    assert CheckpointReader(tmp_path / "out").names() == ["layer.0", "layer.1"]


def test_a_folder_that_becomes_the_working_folder_during_a_run_stays_it(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    with CheckpointWriter(tmp_path / "out") as writer:
        writer.add(tensors(1))
        monkeypatch.chdir(tmp_path / "out")
        writer.finish()

    assert os.listdir(".") == ["model.safetensors"]


def test_a_run_in_the_working_folder_goes_on_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with CheckpointWriter(".") as writer:
        writer.begin({"seed": 0})
        writer.add(tensors(1))
        writer.commit({"stage": "one"})
    monkeypatch.chdir(tmp_path)

    with CheckpointWriter("out") as writer:
        assert len(writer.begin({"seed": 0})) == 1
        writer.finish()
    assert os.listdir("out") == ["model.safetensors"]


def test_any_folder_can_be_written_into_when_it_is_asked_for(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokenizer.json").touch()

    write(tmp_path / "out", tensors(1), overwrite=True, any_folder=True)

    assert sorted(os.listdir(tmp_path / "out")) == ["model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("name", ["x" * 250, "ü" * 125, "a/" + "x" * 300 + "/b", "x/" * 3000], ids=range(4))
def test_a_name_that_the_file_system_does_not_take_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="too long"):
        CheckpointWriter(f"{tmp_path}/{name}")


def test_a_name_that_only_just_fits_works(tmp_path):
    write(tmp_path / ("x" * 247), tensors(1))

    assert len(os.listdir(tmp_path)[0]) == 247


@pytest.mark.parametrize("name", ["a\0b", "~nobody-of-this-name/x"])
def test_what_can_be_no_folder_is_refused(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(CheckpointError, match="cannot be the name of a folder"):
        CheckpointWriter(name)


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    with pytest.raises(CheckpointError):
        CheckpointWriter(tmp_path / "a" / "out")


def test_an_output_in_the_home_folder_may_be_written_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    assert CheckpointWriter("~/out").output == tmp_path.resolve() / "out"


def test_a_name_that_is_no_text_is_written_and_read(tmp_path):
    write(os.fsdecode(os.fsencode(tmp_path) + b"/out\xff"), tensors(1), manifest={"source": "a\udcff"})

    assert os.listdir(os.fsencode(tmp_path)) == [b"out\xff"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")

    write(tmp_path / "out", tensors(1))

    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "real" / "model.safetensors").is_file()


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
    monkeypatch.setattr(destination_module.os, "access", lambda path, mode: False)  # the tests may run as root

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


def test_a_run_killed_between_its_renames_gives_the_old_checkpoint_back(tmp_path, monkeypatch):
    write(tmp_path / "out", tensors(1), manifest={})
    before = files(tmp_path / "out")
    rename = Path.rename

    def killed(self, target):
        if target == tmp_path / "out":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", tensors(2), overwrite=True, manifest={})
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()

    with pytest.raises(CheckpointError, match="exists and is not empty"):
        CheckpointWriter(tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_a_file_of_somebody_else_in_the_folder_of_a_run_stays(tmp_path, caplog):
    with CheckpointWriter(tmp_path / "out") as writer:
        (writer.partial / "thesis.txt").touch()
        writer.add(tensors(1))
        writer.finish()

    assert os.listdir(tmp_path / "out.partial") == ["thesis.txt"]
    assert "did not write" in caplog.text


def test_a_link_in_place_of_the_folder_of_a_run_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.partial").symlink_to("elsewhere")

    with pytest.raises(CheckpointError, match="is in the way"):
        CheckpointWriter(tmp_path / "out")


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
    ("module", "broken", "call"),
    [
        (writer_module, "write_shard", lambda writer: writer.add({"x": torch.zeros(9)})),
        (writer_module, "sync_tree", lambda writer: writer.finish()),
        (parts_module, "write_shards", lambda writer: writer.finish()),
    ],
)
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch, module, broken, call):
    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with CheckpointWriter(tmp_path / "out", max_shard_size=1) as writer:
        writer.add(tensors(1))
        monkeypatch.setattr(module, broken, full)
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
