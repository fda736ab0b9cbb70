"""What is finished survives; what is not is done again; what belongs to another run is refused."""

import errno
import json
import logging
import os

import pytest
import torch

import coldpress.checkpoint.parts as parts_module
import coldpress.checkpoint.writer as writer_module
from coldpress.checkpoint import CheckpointReader, CheckpointWriter
from coldpress.checkpoint.destination import Destination
from coldpress.checkpoint.journal import NAME, Journal, differences
from coldpress.errors import CheckpointError

BINDING = {"recipe": "a\nb: 1\n", "model": {"x.safetensors": "1"}, "data": "d", "seed": 0, "_files": {}}


class StopError(Exception):
    pass


def stage(number):
    generator = torch.Generator().manual_seed(number)
    return {f"stage.{number}.{part}": torch.randn(4, 8, generator=generator) for part in "ab"}


def work(output, stop_after=None, binding=BINDING, count=4, **settings):
    """Write `count` stages of two tensors; returns how many were kept from an earlier run."""
    with CheckpointWriter(output, max_shard_size=300, **settings) as writer:
        kept = writer.begin(binding)
        for number in range(len(kept), count):
            if number == stop_after:
                raise StopError
            writer.add(stage(number))
            writer.commit({"stage": f"stage.{number}"})
        writer.finish()
    return len(kept)


def interrupted(output, stop_after):
    with pytest.raises(StopError):
        work(output, stop_after)
    return output.with_name(f"{output.name}.partial")


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def undisturbed(tmp_path):
    work(tmp_path / "undisturbed")
    return files(tmp_path / "undisturbed")


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(tmp_path, undisturbed, stop_after):
    interrupted(tmp_path / "out", stop_after)

    assert work(tmp_path / "out") == stop_after
    assert files(tmp_path / "out") == undisturbed
    assert not (tmp_path / "out.partial").exists()


def test_an_error_before_the_first_finished_stage_leaves_nothing(tmp_path):
    interrupted(tmp_path / "out", 0)

    assert os.listdir(tmp_path) == []


def test_an_interruption_says_how_to_go_on(tmp_path, caplog):
    interrupted(tmp_path / "out", 2)

    assert "2 finished stages are kept in" in caplog.text
    assert "the same command resumes there; pass restart=True" in caplog.text


def begin_and_raise(output, error, meanwhile=lambda: None):
    """One finished stage, and an error in the next."""
    with CheckpointWriter(output, max_shard_size=100) as writer:
        writer.begin(BINDING)
        writer.add(stage(0))
        writer.commit({"stage": "stage.0"})
        meanwhile()
        writer.add(stage(1))
        if error is not None:
            raise error
        writer.commit({"stage": "stage.1"})


def test_a_run_goes_on_after_ctrl_c(tmp_path, undisturbed):
    with pytest.raises(KeyboardInterrupt):
        begin_and_raise(tmp_path / "out", KeyboardInterrupt)

    assert work(tmp_path / "out") == 1
    assert files(tmp_path / "out") == undisturbed


def test_what_a_run_leaves_that_is_killed_after_its_rename_is_no_unfinished_run(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(Destination, "_clear", lambda self: None)
    work(tmp_path / "out")
    monkeypatch.undo()

    assert (tmp_path / "out.partial").exists()
    assert work(tmp_path / "out", binding={**BINDING, "seed": 5}, overwrite=True) == 0
    assert files(tmp_path / "out") == undisturbed
    assert not (tmp_path / "out.partial").exists()


def test_a_run_that_is_killed_before_its_rename_goes_on(tmp_path, undisturbed, monkeypatch):
    def fail(self):
        raise StopError

    monkeypatch.setattr(Destination, "publish", fail)
    with pytest.raises(StopError):
        work(tmp_path / "out")
    monkeypatch.undo()

    assert work(tmp_path / "out") == 4
    assert files(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("cut", [1, 20])
def test_a_line_that_was_cut_off_is_dropped(tmp_path, undisturbed, cut, caplog):
    journal = interrupted(tmp_path / "out", 3) / NAME
    journal.write_bytes(journal.read_bytes()[:-cut])

    assert work(tmp_path / "out") == 2
    assert "a line that was cut off; it is dropped" in caplog.text
    assert files(tmp_path / "out") == undisturbed


def test_a_first_line_that_was_cut_off_begins_anew(tmp_path, undisturbed):
    journal = interrupted(tmp_path / "out", 3) / NAME
    journal.write_bytes(journal.read_bytes()[:30])

    assert work(tmp_path / "out") == 0
    assert files(tmp_path / "out") == undisturbed


def test_an_empty_folder_is_what_a_run_leaves_that_is_killed_at_once(tmp_path):
    (tmp_path / "out.partial").mkdir()

    assert work(tmp_path / "out") == 0


@pytest.mark.parametrize("content", ["", "hello\n", '{"other": 1}\n'])
def test_a_folder_from_elsewhere_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").write_text("mine")
    if content:
        (tmp_path / "out.partial" / NAME).write_text(content)

    with pytest.raises(CheckpointError, match="in the way and was not left by an interrupted run"):
        work(tmp_path / "out")
    assert (tmp_path / "out.partial" / "mine").read_text() == "mine"


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_damaged_file_and_all_later_ones_are_written_again(tmp_path, undisturbed, harm, caplog):
    path = interrupted(tmp_path / "out", 3) / "part-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    if harm != "remove":
        path.write_bytes(content if harm == "flip" else content[:-5])

    assert work(tmp_path / "out") == 1
    assert f"part-00002.safetensors is {'missing' if harm == 'remove' else 'damaged'}" in caplog.text
    assert "stage.1, and all later ones are done again" in caplog.text
    assert files(tmp_path / "out") == undisturbed


def test_what_no_line_speaks_of_is_removed(tmp_path, undisturbed):
    partial = interrupted(tmp_path / "out", 2)
    (partial / "part-00003.safetensors").write_bytes(b"whole, and not in the journal")
    (partial / "part-00004.tmp").write_bytes(b"half")
    (partial / "checkpoint").mkdir()
    (partial / "checkpoint" / "model.safetensors").write_bytes(b"half")

    assert work(tmp_path / "out") == 2
    assert files(tmp_path / "out") == undisturbed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"recipe": "a\nb: 2\n"}, "recipe: 'b: 1' then, 'b: 2' now"),
        ({"recipe": "a\nb: 1\nc\n"}, "recipe: '' then, 'c' now"),
        ({"model": {"x.safetensors": "2"}}, r"model: x\.safetensors changed"),
        ({"model": "in memory"}, "model: not the same as then"),
        ({"data": None}, "data: not the same as then"),
    ],
)
def test_another_run_is_refused_with_the_difference_and_both_ways_out(tmp_path, undisturbed, change, says):
    interrupted(tmp_path / "out", 2)

    with pytest.raises(CheckpointError, match=says) as caught:
        work(tmp_path / "out", binding={**BINDING, **change})
    assert "go on with the command that began it" in str(caught.value)
    assert "restart=True" in str(caught.value)
    assert work(tmp_path / "out") == 2  # nothing of it was touched
    assert files(tmp_path / "out") == undisturbed


def test_what_begins_with_an_underscore_is_no_difference():
    assert differences(BINDING, {**BINDING, "_files": {"x": 1}}) == []


def test_restart_discards_and_begins_anew(tmp_path, undisturbed):
    interrupted(tmp_path / "out", 3)

    assert work(tmp_path / "out", binding={**BINDING, "seed": 5}, restart=True) == 0
    assert files(tmp_path / "out") == undisturbed


def test_a_writer_without_a_binding_does_not_touch_finished_stages(tmp_path):
    interrupted(tmp_path / "out", 2)

    with (
        pytest.raises(CheckpointError, match="unfinished run, of which 2 stages are done"),
        CheckpointWriter(tmp_path / "out") as writer,
    ):
        writer.add(stage(0))
    assert work(tmp_path / "out") == 2


def test_a_full_disk_keeps_what_is_finished(tmp_path, undisturbed, monkeypatch):
    def full(path, tensors):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CheckpointError, match="the disk is full"):
        begin_and_raise(tmp_path / "out", None, lambda: monkeypatch.setattr(writer_module, "write_shard", full))
    monkeypatch.undo()

    assert work(tmp_path / "out") == 1
    assert files(tmp_path / "out") == undisturbed


def test_a_disk_that_is_full_at_the_end_keeps_every_stage(tmp_path, undisturbed, monkeypatch):
    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(parts_module, "write_shards", full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        work(tmp_path / "out")
    monkeypatch.undo()

    assert work(tmp_path / "out") == 4
    assert files(tmp_path / "out") == undisturbed


def test_a_shard_that_is_one_stage_is_not_copied(tmp_path):
    with CheckpointWriter(tmp_path / "out", max_shard_size=256) as writer:
        writer.begin(BINDING)
        for number in range(3):
            writer.add(stage(number))
            writer.commit({"stage": f"stage.{number}"})
        inode = (writer.partial / "part-00002.safetensors").stat().st_ino
        writer.finish()

    assert (tmp_path / "out" / "model-00002-of-00003.safetensors").stat().st_ino == inode
    CheckpointReader(tmp_path / "out").check()


def test_a_stage_may_take_several_files(tmp_path):
    with pytest.raises(StopError):
        begin_and_raise(tmp_path / "out", StopError)

    with CheckpointWriter(tmp_path / "out", max_shard_size=100) as writer:
        (kept,) = writer.begin(BINDING)
        assert [file["name"] for file in kept["files"]] == ["part-00001.safetensors", "part-00002.safetensors"]
        assert torch.equal(writer.read("stage.0.b"), stage(0)["stage.0.b"])


def test_every_line_is_on_the_disk_when_it_is_added(tmp_path):
    journal = Journal(tmp_path)
    journal.start(BINDING)
    journal.add({"stage": "one"})

    lines = [json.loads(line) for line in (tmp_path / NAME).read_text().splitlines()]
    assert lines == [{"coldpress_journal": 1, "binding": BINDING}, {"stage": "one"}]
    journal.close()


def test_a_journal_that_is_held_is_not_taken(tmp_path):
    journal = Journal(tmp_path)

    with pytest.raises(CheckpointError, match="another run is writing"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_a_later_version_of_the_journal_is_refused(tmp_path):
    (tmp_path / NAME).write_text('{"coldpress_journal": 2, "binding": {}}\n')

    with pytest.raises(CheckpointError, match="not a journal of this version"):
        Journal(tmp_path)


def test_finished_stages_are_told_at_the_level_of_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        interrupted(tmp_path / "out", 1)

    assert "1 finished stage is kept" in caplog.text


SOUND = {"stage": "stage.0", "files": [{"name": "part-00001.safetensors", "sha256": "0"}]}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"stage": "stage.0"}, "line 2: 'files' is no list"),
        ({**SOUND, "files": {"name": "x"}}, "line 2: 'files' is no list"),
        ({**SOUND, "files": ["part-00001.safetensors"]}, "which is no file of a stage"),
        ({**SOUND, "files": [{"name": "part-00001.safetensors"}]}, "which is no file of a stage"),
        ({**SOUND, "files": [{"name": "../../secret", "sha256": "0"}]}, "'../../secret'.*which is no file of a stage"),
        ({**SOUND, "files": [{"name": 3, "sha256": "0"}]}, "which is no file of a stage"),
    ],
)
def test_a_line_that_no_run_writes_is_refused_by_its_number_until_it_is_discarded(tmp_path, undisturbed, line, says):
    path = interrupted(tmp_path / "out", 2) / NAME
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], json.dumps(line), lines[2], ""]))
    before = path.read_bytes()

    for _ in range(2):
        with pytest.raises(CheckpointError, match=says):
            work(tmp_path / "out")
        assert path.read_bytes() == before
    assert work(tmp_path / "out", restart=True) == 0
    assert files(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("binding", ["text", [1], {"_files": 3}, {"_files": {"a": [1, 2, 3]}}, None])
def test_a_first_line_that_no_run_writes_is_refused(tmp_path, binding):
    path = interrupted(tmp_path / "out", 2) / NAME
    rest = path.read_text().splitlines()[1:]
    path.write_text("\n".join([json.dumps({"coldpress_journal": 1, "binding": binding}), *rest, ""]))

    with pytest.raises(CheckpointError, match="line 1:"):
        work(tmp_path / "out")
    assert path.exists()


def test_a_line_that_is_nested_without_end_is_no_line(tmp_path, undisturbed):
    path = interrupted(tmp_path / "out", 2) / NAME
    with path.open("ab") as file:
        file.write(b"[" * 100_000 + b"\n")

    assert work(tmp_path / "out") == 2
    assert files(tmp_path / "out") == undisturbed


def test_a_rank_that_does_not_write_locks_nothing(tmp_path):
    with pytest.raises(StopError):
        work(tmp_path / "out", stop_after=2)
    with CheckpointWriter(tmp_path / "out"):
        CheckpointWriter(tmp_path / "out", check=False)
        with pytest.raises(CheckpointError, match="another run is writing"):
            CheckpointWriter(tmp_path / "out")
