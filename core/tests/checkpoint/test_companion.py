import json
import os

import pytest

from coldpress.checkpoint.companion import Origin, companions, copy_companions

MAIN = ["config.json", "model.safetensors", "tokenizer.json", "LICENSE"]


def fill(folder, names, kind="llama"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"model_type": kind}) if path.name == "config.json" else name)


def copied(folder, *, has_tokenizer=True, target=None):
    origin = Origin(folder, has_tokenizer=has_tokenizer)
    return sorted(map(str, companions(origin, target or folder.parent / "out")))


@pytest.mark.parametrize(
    "name",
    [
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "NOTICE.md",
        "README.md",
        "chat_template.jinja",
        "code/deep/inside/module.py",
        "merges.txt",
        "mm_projector.bin",
        "modules.json",
        "preprocessor_config.json",
        "sentencepiece.bpe.model",
        "speakers.pt",
        "tokenizer-codec.safetensors",
        "vocab.bpe",
    ],
)
def test_what_belongs_to_a_model_comes_along(tmp_path, name):
    fill(tmp_path / "model", [*MAIN, name])

    assert copied(tmp_path / "model") == sorted(["LICENSE", "tokenizer.json", name])


@pytest.mark.parametrize(
    "name",
    [
        ".cache/huggingface/x.json",
        "__pycache__/module.pyc",
        "adapter_model.safetensors",
        "checkpoint-500/trainer_state.json",
        "consolidated.00.pth",
        "flax_model.msgpack",
        "hf_quant_config.json",
        "inside.partial/journal.jsonl",
        "model-q4.gguf",
        "model.fp16.safetensors",
        "model.safetensors.index.json",
        "onnx/model.onnx",
        "optimizer.pt",
        "original/consolidated.00.pth",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model.bin.index.json",
        "quantize_config.json",
        "training_args.bin",
        "venv/pyvenv.cfg",
    ],
)
def test_weights_and_what_tools_leave_stay_behind(tmp_path, name):
    fill(tmp_path / "model", [*MAIN, name])

    assert copied(tmp_path / "model") == ["LICENSE", "tokenizer.json"]


def test_shards_without_an_index_stay_behind(tmp_path):
    fill(tmp_path / "model", ["config.json", "part1.safetensors", "part2.safetensors", "LICENSE"])

    assert copied(tmp_path / "model") == ["LICENSE"]


def test_another_model_of_the_kind_stays_behind_and_a_part_of_another_kind_comes_along(tmp_path):
    fill(tmp_path / "model", MAIN)
    fill(tmp_path / "model" / "fp8", MAIN)
    fill(tmp_path / "model" / "codec", MAIN, kind="mimi")

    found = copied(tmp_path / "model")

    assert "codec/model.safetensors" in found
    assert not any(name.startswith("fp8") for name in found)


def test_a_checkpoint_inside_of_its_model_does_not_copy_itself(tmp_path):
    fill(tmp_path / "model", [*MAIN, "sub/a.txt"])
    target = tmp_path / "model" / "sub" / "out.partial" / "checkpoint"
    target.mkdir(parents=True)

    copy_companions(Origin(tmp_path / "model", has_tokenizer=True), target)

    assert sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()) == [
        "LICENSE",
        "tokenizer.json",
    ]


def test_links_are_followed_once(tmp_path):
    fill(tmp_path / "blobs", ["a", "b"])
    fill(tmp_path / "elsewhere", ["note.txt"])
    fill(tmp_path / "model", ["config.json", "model.safetensors"])
    (tmp_path / "model" / "vocab.json").symlink_to(tmp_path / "blobs" / "a")
    (tmp_path / "model" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "model" / "folder" / "loop").symlink_to(tmp_path / "model")
    (tmp_path / "model" / "broken").symlink_to("nowhere")
    target = tmp_path / "out"

    copy_companions(Origin(tmp_path / "model", has_tokenizer=True), target)

    assert {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()} == {
        "vocab.json",
        "folder/note.txt",
    }
    assert not (target / "vocab.json").is_symlink()


def test_the_tokenizer_of_the_folder_stays_behind_when_the_run_has_another(tmp_path):
    fill(tmp_path / "model", [*MAIN, "vocab.json", "additional_chat_templates/tool.jinja", "preprocessor_config.json"])

    assert copied(tmp_path / "model", has_tokenizer=False) == ["LICENSE", "preprocessor_config.json"]


def test_what_is_neither_file_nor_folder_is_named_and_not_waited_for(tmp_path, caplog):
    model, out = tmp_path / "model", tmp_path / "out"
    (model / "code").mkdir(parents=True)
    out.mkdir()
    (model / "notes.txt").write_text("mine")
    (model / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(model / "code/pipe")

    copy_companions(Origin(model), out)

    assert sorted(path.name for path in out.rglob("*")) == ["notes.txt"]
    assert f"{model / 'gone.txt'} is a link to a file that is not there, and is not copied" in caplog.text
    assert f"{model / 'code/pipe'} is a pipe, a device or a socket, and is not copied" in caplog.text
