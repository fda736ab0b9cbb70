"""Bad input is one clear error and leaves the disk as it was; what fails later leaves nothing that looks whole."""

import errno
import json
import shutil

import pytest
import torch
from attrs import frozen
from safetensors.torch import load_file, save_file

from coldpress import oneshot
from coldpress.checkpoint import CheckpointWriter
from coldpress.errors import (
    ArgumentError,
    BrokenPluginError,
    CalibrationError,
    CheckpointError,
    ModelError,
    NumericsError,
    RecipeError,
    SchemeError,
    UnknownPluginError,
)
from coldpress.hookspecs import hookimpl
from coldpress.modifier import Modifier
from coldpress.testing.models import tiny_llama, tiny_tokenizer

ROUNDING = "modifiers: [QuantizationModifier: {scheme: W8A8, ignore: [lm_head]}]"
STATIC = "modifiers: [QuantizationModifier: {scheme: FP8, ignore: [lm_head]}]"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A tiny Llama in a folder, with a tokenizer."""
    path = tmp_path_factory.mktemp("pristine") / "model"
    tiny_llama().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def model(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "model")


def tree(folder):
    """Every folder and file with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def change(model, edit):
    tensors = load_file(model / "model.safetensors")
    edit(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def truncate(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def garble(model):
    (model / "model.safetensors").write_bytes(b"\xff" * 4096)


def forget_tokenizer(model):
    for path in model.glob("*token*"):
        path.unlink()


def spoil(name, value):
    return lambda model: change(model, lambda tensors: tensors[name].view(-1)[5:6].fill_(value))


def nothing(model):
    pass


CASES = {
    "unknown model": (nothing, {"model": "{model}s"}, ModelError, "models' is not there.*did you mean"),
    "no tokenizer": (forget_tokenizer, {"recipe": STATIC, "dataset": ["text"]}, ModelError, "needs a tokenizer"),
    "truncated weights": (truncate, {}, CheckpointError, "model.safetensors"),
    "corrupt weights": (garble, {}, CheckpointError, "model.safetensors"),
    "missing tensor": (
        lambda model: change(model, lambda tensors: tensors.pop("model.norm.weight")),
        {},
        CheckpointError,
        "model.norm.weight",
    ),
    "broken configuration": (
        lambda model: (model / "config.json").write_text("{"),
        {},
        CheckpointError,
        "config.json",
    ),
    "group that does not divide": (
        nothing,
        {"recipe": ROUNDING.replace("W8A8", "W4A16, group_size: 48")},
        SchemeError,
        "q_proj.*48 does not divide the 128 columns.*32, 64, 128 would",
    ),
    "NaN": (spoil("model.embed_tokens.weight", float("nan")), {}, NumericsError, "model.embed_tokens.weight"),
    "Inf": (spoil("model.embed_tokens.weight", float("inf")), {}, NumericsError, "model.embed_tokens.weight"),
    "empty data": (nothing, {"recipe": STATIC, "dataset": []}, CalibrationError, "empty"),
    "blank data": (nothing, {"recipe": STATIC, "dataset": ["", " "]}, CalibrationError, "none of its 2 rows"),
    "no data": (nothing, {"recipe": STATIC}, CalibrationError, "pass dataset="),
    "wrong column": (
        nothing,
        {"recipe": STATIC, "dataset": [{"txt": "a"}]},
        CalibrationError,
        "no column 'text'; did you mean 'txt'",
    ),
    "unknown scheme": (nothing, {"recipe": ROUNDING.replace("W8A8", "W8A9")}, RecipeError, "'W8A9'; did you mean"),
    "unknown modifier": (nothing, {"recipe": ROUNDING.replace("Quant", "Qant")}, RecipeError, "did you mean 'Quant"),
    "unknown setting": (nothing, {"recipe": ROUNDING.replace("ignore", "ignroe")}, RecipeError, "did you mean 'ignore"),
    "unknown argument": (nothing, {"overwrit": True}, ArgumentError, "did you mean 'overwrite'"),
    "unknown pipeline": (nothing, {"pipeline": "basics"}, UnknownPluginError, "did you mean 'basic'"),
    "unknown format": (nothing, {"format": "densee"}, UnknownPluginError, "did you mean 'dense'"),
    "unknown device": (nothing, {"device": "gpu9"}, ArgumentError, "gpu9"),
    "python in a recipe": (
        nothing,
        {"recipe": "modifiers: !!python/object/apply:os.system ['touch pwned']"},
        RecipeError,
        "python",
    ),
    "alias bomb": (nothing, {"recipe": BOMB + ROUNDING}, RecipeError, "aliases"),
    "a path for a plugin": (
        nothing,
        {"recipe": f"format: ../evil.py\n{ROUNDING}"},
        UnknownPluginError,
        "never by a path",
    ),
    "a recipe that is not there": (nothing, {"recipe": "{model}/recipe.yaml"}, RecipeError, "no recipe file"),
}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "in memory"])
@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_clear_error_and_leaves_the_disk_as_it_was(model, tmp_path, monkeypatch, name, stream):
    monkeypatch.chdir(tmp_path)
    spoiled, arguments, error, message = CASES[name]
    spoiled(model)
    before = tree(tmp_path)
    given = {"model": "{model}", "recipe": ROUNDING, "stream_weights": None if stream else False, **arguments}
    given = {k: v.replace("{model}", str(model)) if isinstance(v, str) else v for k, v in given.items()}

    with pytest.raises(error, match=message):
        oneshot(output_dir=tmp_path / "results/today/out", quiet=True, **given)

    assert tree(tmp_path) == before


def test_a_folder_that_somebody_else_uses_meanwhile_stays(tmp_path):
    def meddle():
        with CheckpointWriter(tmp_path / "results/today/out"):
            (tmp_path / "results/mine.txt").write_text("mine")
            raise StopError

    with pytest.raises(StopError):
        meddle()

    assert sorted(tree(tmp_path)) == ["results", "results/mine.txt"]


def test_a_nan_in_a_later_block_keeps_finished_stages_only(model, tmp_path):
    spoil("model.layers.1.mlp.up_proj.weight", float("nan"))(model)

    with pytest.raises(NumericsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        oneshot(str(model), ROUNDING, output_dir=tmp_path / "out", quiet=True)

    left = {path.name for path in (tmp_path / "out.partial").iterdir()}
    assert {name.partition("-")[0] for name in left} == {"journal.jsonl", "part"}
    assert not (tmp_path / "out").exists()


class StopError(Exception):
    pass


@frozen(kw_only=True, eq=False)
class FailsToSave(Modifier):
    """Begins a file of its own, and then fails."""

    @hookimpl
    def save(self, state, folder):
        (folder / "mine.txt").write_text("half of i")
        raise StopError


def full_disk_at(name):
    """The disk is full when this file is written, after half of it."""

    def break_it(monkeypatch):
        write = CheckpointWriter.write_text

        def write_text(self, file, text):
            if file == name:
                write(self, file, text[: len(text) // 2])
                raise OSError(errno.ENOSPC, "No space left on device", str(self.path(file)))
            write(self, file, text)

        monkeypatch.setattr(CheckpointWriter, "write_text", write_text)

    return break_it


def stopped_at(module, name):
    """Ctrl-C inside of this function."""

    def stop(*args, **settings):
        raise KeyboardInterrupt

    return lambda monkeypatch: monkeypatch.setattr(f"{module}.{name}", stop)


LATE = {
    "config.json": full_disk_at("config.json"),
    "recipe.yaml": full_disk_at("recipe.yaml"),
    "report.json": full_disk_at("report.json"),
    "manifest.json": full_disk_at("manifest.json"),
    "companions": stopped_at("coldpress.checkpoint.output", "copy_companions"),
    "shards": stopped_at("coldpress.checkpoint.parts", "write_shards"),
    "sync": stopped_at("coldpress.checkpoint.writer", "sync_tree"),
}


@pytest.mark.parametrize("name", LATE)
def test_what_fails_while_the_last_files_are_written_leaves_the_old_output_whole(model, tmp_path, monkeypatch, name):
    out = tmp_path / "out"
    oneshot(str(model), ROUNDING, output_dir=out, quiet=True)
    before = tree(out)

    with monkeypatch.context() as patch:
        LATE[name](patch)
        with pytest.raises((OSError, KeyboardInterrupt, CheckpointError)):
            oneshot(str(model), STATIC, dataset=["text"], output_dir=out, overwrite=True, quiet=True)

    assert tree(out) == before
    assert not (tmp_path / "out.partial/checkpoint").exists()
    oneshot(str(model), STATIC, dataset=["text"], output_dir=out, overwrite=True, quiet=True)
    assert json.loads((out / "report.json").read_text())["layers"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def save_later(target):
    oneshot(tiny_llama(), [FailsToSave()]).save_pretrained(target)


def save_at_once(target):
    oneshot(tiny_llama(), [FailsToSave()], output_dir=target, quiet=True)


@pytest.mark.parametrize("save", [save_later, save_at_once])
def test_a_modifier_that_fails_to_save_leaves_no_output(tmp_path, save):
    with pytest.raises(BrokenPluginError, match=r"FailsToSave\.save.*StopError"):
        save(tmp_path / "out")

    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial/checkpoint").exists()


def test_a_user_s_function_that_fails_is_not_hidden_and_leaves_nothing(model, tmp_path):
    before = tree(tmp_path)

    def fail(row):
        raise StopError

    with pytest.raises(StopError):
        oneshot(str(model), STATIC, dataset=["a"], preprocessing_func=fail, output_dir=tmp_path / "out", quiet=True)

    assert tree(tmp_path) == before


def test_the_model_in_memory_is_whole_after_bad_input():
    model = tiny_llama()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}

    with pytest.raises(CalibrationError):
        oneshot(model, STATIC, dataset=[], tokenizer=tiny_tokenizer())

    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
