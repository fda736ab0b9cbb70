"""A run that is interrupted goes on where it was, and gives the bytes of a run that was not."""

import json
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch

from coldpress import load_model, oneshot
from coldpress.attachment import every_attachment
from coldpress.checkpoint import CheckpointReader
from coldpress.errors import CheckpointError
from coldpress.run.job import Job
from coldpress.testing.interrupt import interrupted, kept_stages
from coldpress.testing.models import batches, logits, tiny_conv1d, tiny_llama, tiny_tokenizer

TIMED = ("report.json", "report.html", "manifest.json")  # they say how long things took
# What a prediction starts from is of the process, as its memory is.
TIMES = ("seconds", "host_bytes", "report.json", "report.html", "predicted", "measured")
RECIPES = {
    "weights only": "QuantizationModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head]}",
    "static inputs": (
        "QuantizationModifier: {ignore: [lm_head], config_groups: {all: {targets: [Linear], "
        "weights: {num_bits: 8, strategy: channel}, input_activations: {num_bits: 8, strategy: tensor}}}}"
    ),
    "head too": "QuantizationModifier: {scheme: W8A8}",
}
MODELS = {"llama": tiny_llama, "tied": lambda: tiny_llama(tied=True), "conv1d": lambda: tiny_conv1d(hidden=64)}


class StopError(Exception):
    pass


@pytest.fixture
def source(tmp_path):
    return save("llama", tmp_path / "llama")


def save(model, path):
    MODELS[model]().save_pretrained(path, max_shard_size="300KB")
    tiny_tokenizer().save_pretrained(path)
    return path


def compress(source, output, recipe="weights only", **settings):
    more = {"dataset": ["some text to calibrate with", "and some more of it"], "num_calibration_samples": 2}
    model = str(source) if not isinstance(source, torch.nn.Module) else source
    return oneshot(model, RECIPES.get(recipe, recipe), output_dir=str(output), quiet=True, **{**more, **settings})


def interrupt(source, output, *, stages=2, **settings):
    with interrupted(stages):
        compress(source, output, **settings)


def resumed(source, output, **settings):
    """Go on; returns the model and the names of the stages that were done again."""
    with kept_stages() as done:
        return compress(source, output, **settings), done


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in TIMED
    }


def untimed(value):
    if isinstance(value, dict):
        return {name: untimed(item) for name, item in value.items() if name not in TIMES}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def told(folder):
    return [untimed(json.loads((folder / name).read_text())) for name in TIMED if name.endswith(".json")]


@pytest.mark.parametrize("stages", [1, 3, 4])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", MODELS)
def test_going_on_gives_the_bytes_of_an_undisturbed_run(tmp_path, model, recipe, stages):
    source = save(model, tmp_path / "source")
    settings = {"recipe": recipe, "pipeline": "sequential" if recipe == "static inputs" else None}
    whole = compress(source, tmp_path / "whole", **settings)
    count = len(json.loads((tmp_path / "whole" / "manifest.json").read_text())["stages"])
    stages = min(stages, count - 1)

    interrupt(source, tmp_path / "out", stages=stages, **settings)
    model, done = resumed(source, tmp_path / "out", **settings)

    assert len(done) == count - stages
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert told(tmp_path / "out") == told(tmp_path / "whole")
    assert torch.equal(logits(model, batches(rows=2)), logits(whole, batches(rows=2)))
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("pipeline", ["basic", "sequential", "layer_sequential", "independent"])
@pytest.mark.parametrize("model", MODELS)
def test_every_pipeline_streams_to_the_bytes_of_a_model_in_memory(tmp_path, model, pipeline):
    source = save(model, tmp_path / "source")
    for name, stream in (("streamed", True), ("loaded", False)):
        compress(source, tmp_path / name, "static inputs", pipeline=pipeline, stream_weights=stream)

    assert files(tmp_path / "streamed") == files(tmp_path / "loaded")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("pipeline", ["sequential", "layer_sequential"])
def test_later_blocks_that_shall_see_the_original_do_so_behind_what_is_finished(tmp_path, source, pipeline, stream):
    settings = {"recipe": "static inputs", "pipeline": pipeline, "propagate_error": False, "stream_weights": stream}
    compress(source, tmp_path / "whole", **settings)

    interrupt(source, tmp_path / "out", stages=2, **settings)
    resumed(source, tmp_path / "out", **settings)

    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("stream", [True, False])
def test_what_compares_with_the_original_does_so_behind_what_is_finished(tmp_path, source, stream):
    recipe = "GPTQModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head], correction: gptaq}"
    settings = {"recipe": recipe, "pipeline": "sequential", "stream_weights": stream}
    compress(source, tmp_path / "whole", **settings)

    interrupt(source, tmp_path / "out", stages=2, **settings)
    resumed(source, tmp_path / "out", **settings)

    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_pipeline_that_goes_on_may_run_what_is_finished(tmp_path, source):
    settings = {"recipe": RECIPES["static inputs"].replace("lm_head", "re:.*mlp.*"), "pipeline": "sequential"}
    compress(source, tmp_path / "whole", **settings)

    interrupt(source, tmp_path / "out", stages=3, **settings)
    _, done = resumed(source, tmp_path / "out", **settings)

    assert done == ["epilogue"]
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_model_in_memory_goes_on_too(tmp_path, recipe):
    settings = {"pipeline": "sequential", "recipe": recipe, "tokenizer": tiny_tokenizer()}
    whole = compress(tiny_llama(), tmp_path / "whole", **settings)

    interrupt(tiny_llama(), tmp_path / "out", **settings)
    model, done = resumed(tiny_llama(), tmp_path / "out", **settings)

    assert len(done) == 2
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert torch.equal(logits(model, batches(rows=2)), logits(whole, batches(rows=2)))
    assert [name for name, _, _ in every_attachment(model.named_modules())] == [
        name for name, _, _ in every_attachment(whole.named_modules())
    ]


TWO = (
    "modifiers: [QuantizationModifier: {ignore: [lm_head, 're:.*mlp.*'], config_groups: {all: {targets: [Linear], "
    "weights: {num_bits: 8, strategy: channel}, input_activations: {num_bits: 8, strategy: tensor}}}}, "
    "QuantizationModifier: {targets: ['re:.*mlp.*_proj'], scheme: FP8}]"
)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("stages", [1, 3])
def test_independent_sweeps_go_on_in_the_last_of_them(tmp_path, source, stages, stream):
    settings = {"recipe": TWO, "pipeline": "independent", "stream_weights": stream}
    whole = compress(source, tmp_path / "whole", **settings)

    interrupt(source, tmp_path / "out", stages=stages, **settings)
    model, done = resumed(source, tmp_path / "out", **settings)

    assert len(done) == 4 - stages
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert told(tmp_path / "out") == told(tmp_path / "whole")
    assert torch.equal(logits(model, batches(rows=2)), logits(whole, batches(rows=2)))


def test_an_independent_sweep_that_is_not_the_last_leaves_nothing_when_it_is_interrupted(tmp_path, monkeypatch, source):
    compress(source, tmp_path / "whole", TWO, pipeline="independent")
    before = Job._compress_stage

    def stop_at_once(self, run, stage):
        if stage.name == "model.layers.1":
            raise StopError
        before(self, run, stage)

    with monkeypatch.context() as patch:
        patch.setattr(Job, "_compress_stage", stop_at_once)
        with pytest.raises(StopError):
            compress(source, tmp_path / "out", TWO, pipeline="independent")
    assert not (tmp_path / "out.partial").exists()
    compress(source, tmp_path / "out", TWO, pipeline="independent")

    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_dense_output_goes_on_with_its_inputs_quantized(tmp_path, source):
    settings = {"pipeline": "sequential", "recipe": "static inputs", "save_compressed": False}
    whole = compress(source, tmp_path / "whole", **settings)

    interrupt(source, tmp_path / "out", stages=3, **settings)
    model, _ = resumed(source, tmp_path / "out", **settings)

    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert torch.equal(logits(model, batches(rows=2)), logits(whole, batches(rows=2)))


def test_it_says_what_is_kept(tmp_path, source, capsys):
    interrupt(source, tmp_path / "out")

    oneshot(str(source), RECIPES["weights only"], output_dir=str(tmp_path / "out"))

    said = "going on where a run was interrupted; kept: 2 finished stages, prologue to model.layers.0"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recipe": "head too"}, "recipe: "),
        ({"seed": 3}, "seed: 0 then, 3 now"),
        ({"save_compressed": False}, "format: 'CompressedTensors.*then, 'DenseFormat.*now"),
        ({"precision": "bfloat16"}, "dtype: 'torch.float32' then, 'torch.bfloat16' now"),
        ({"pipeline": "basic"}, "pipeline: 'DataFree.*then, 'Basic.*now"),
        ({"stream_weights": False}, "model: not the same as then"),
    ],
)
def test_another_command_is_refused_and_the_old_one_still_goes_on(tmp_path, source, change, says):
    interrupt(source, tmp_path / "out")

    with pytest.raises(CheckpointError, match=says):
        compress(source, tmp_path / "out", **change)
    assert len(resumed(source, tmp_path / "out")[1]) == 2


def test_other_data_are_refused(tmp_path, source):
    settings = {"pipeline": "sequential", "recipe": "static inputs"}
    interrupt(source, tmp_path / "out", **settings)

    with pytest.raises(CheckpointError, match="data: not the same as then"):
        compress(source, tmp_path / "out", **{**settings, "dataset": ["another text", "and another"]})


def test_a_model_that_was_changed_in_place_is_refused(tmp_path, source):
    interrupt(source, tmp_path / "out")
    path = CheckpointReader(source).files[-1]
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=f"model: {path.name} changed"):
        compress(source, tmp_path / "out")


def test_a_model_that_was_moved_is_the_same(tmp_path, source):
    compress(source, tmp_path / "whole")
    interrupt(source, tmp_path / "out")
    shutil.copytree(source, tmp_path / "copy")

    _, done = resumed(tmp_path / "copy", tmp_path / "out")

    assert len(done) == 2
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_restart_begins_anew(tmp_path, source):
    compress(source, tmp_path / "whole", seed=1)
    interrupt(source, tmp_path / "out")

    _, done = resumed(source, tmp_path / "out", seed=1, restart=True)

    assert len(done) == 4
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_damaged_stage_is_done_again(tmp_path, source, caplog):
    compress(source, tmp_path / "whole")
    interrupt(source, tmp_path / "out", stages=3)
    path = tmp_path / "out.partial" / "part-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")

    _, done = resumed(source, tmp_path / "out")

    assert len(done) == 3
    assert "part-00002.safetensors is damaged: its stage, model.layers.0, and all later ones" in caplog.text
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_the_same_inputs_and_seed_give_the_same_bytes(tmp_path, source):
    for name in ("one", "two"):
        compress(source, tmp_path / name, "static inputs", seed=7)

    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert told(tmp_path / "one") == told(tmp_path / "two")


def test_the_manifest_says_what_it_was_made_of(tmp_path, source):
    compress(source, tmp_path / "out", "static inputs", seed=7)

    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["source"] == str(source)
    assert manifest["seed"] == 7
    assert "QuantizationModifier" in manifest["recipe"]
    assert len(manifest["data"]) == 64
    assert set(manifest["model"]) == {path.name for path in CheckpointReader(source).files}
    assert {"coldpress", "python", "torch", "transformers", "coldpress-quantization"} <= set(manifest["versions"])
    assert manifest["hardware"]["cores"] > 0
    assert all(stage["seconds"] >= 0 for stage in manifest["stages"])


def test_what_lies_beside_the_weights_comes_through_unchanged(tmp_path, source):
    (source / "modeling_mine.py").write_text("mine = 1\n")
    (source / "preprocessor_config.json").write_text('{"size":   3}')
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool.jinja").write_text("{{ tool }}")
    (source / "generation_config.json").write_text('{"max_length": 77,   "temperature": 0.5}')
    (source / "LICENSE").write_text("free")
    (source / "pytorch_model.bin").write_text("not these")
    (source / "adapter_config.json").write_text("{}")
    (source / "notes.md").write_text("card")
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    (source / "assets").mkdir()
    (source / "assets" / "picture.png").write_bytes(b"png")
    shutil.copytree(save("llama", tmp_path / "other"), source / "fp8")  # another model, and what training leaves
    (source / "optimizer.pt").write_text("nor these")
    (source / ".cache").mkdir()
    (source / ".cache" / "x.json").write_text("nor these")

    compress(source, tmp_path / "out", "static inputs", max_seq_length=3)

    ours = {"config.json", "recipe.yaml", "report.html", "report.json", "manifest.json"}
    after = {path for path in files(tmp_path / "out") if not path.endswith((".safetensors", ".index.json"))} - ours
    assert after == {
        "modeling_mine.py",
        "preprocessor_config.json",
        "chat_template.jinja",
        "additional_chat_templates/tool.jinja",
        "generation_config.json",
        "LICENSE",
        "notes.md",
        "1_Pooling/config.json",
        "assets/picture.png",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert all((tmp_path / "out" / name).read_bytes() == (source / name).read_bytes() for name in after)


def test_calibration_does_not_leak_into_a_tokenizer_that_was_handed_over(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "before")

    compress(tiny_llama(), tmp_path / "out", "static inputs", tokenizer=tokenizer, max_seq_length=3)

    before, after = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("before", "out"))
    assert after == before


def test_a_model_with_code_of_its_own_is_streamed_and_loads_again(tmp_path):
    source = save("llama", tmp_path / "custom")
    (source / "modeling_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n\n\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((source / "config.json").read_text())
    classes = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config.update(model_type="own", auto_map=classes, architectures=["OwnForCausalLM"])
    (source / "config.json").write_text(json.dumps(config))

    model = compress(source, tmp_path / "out", trust_remote_code_model=True, stream_weights=True)

    assert type(model).__name__ == "OwnForCausalLM"
    again = load_model(str(tmp_path / "out"), trust_remote_code=True)
    assert torch.equal(logits(again, batches(rows=2)), logits(model, batches(rows=2)))


def test_a_run_that_is_killed_goes_on(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import kill_resume

    case = kill_resume.cases(tmp_path, only="w8a8-static")[0]
    trials = [kill_resume.trial(case, number, random.Random(number)) for number in range(3)]

    assert [trial["same"] for trial in trials] == [True] * 3
    sys.modules.pop("kill_resume")


DAMAGED = {
    "no report": lambda line: line.update(report=3),
    "an entry that is no table": lambda line: line.update(report=[3]),
    "an entry without a name": lambda line: line["report"][0].pop("name"),
    "an unknown field": lambda line: line["report"][0].update(more=1),
    "a time in words": lambda line: line["report"][0].update(seconds="long"),
    "a shape of text": lambda line: line["report"][0].update(shape="ab"),
    "notes in a list": lambda line: line["report"][0].update(notes=[1]),
    "no schemes": lambda line: line.pop("schemes"),
    "a scheme of text": lambda line: line.update(schemes={"model.layers.0.mlp.up_proj": "W4A16"}),
    "a scheme of nonsense": lambda line: line.update(schemes={"x": {"targets": [], "weights": {"num_bits": "many"}}}),
    "attachments of nonsense": lambda line: line.update(attachments=[{"kind": 3}]),
    "no log": lambda line: line.update(log=None),
    "a stage that is a number": lambda line: line.update(stage=3),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_record_that_no_run_writes_is_told_and_can_be_discarded(tmp_path, damage):
    source = save("llama", tmp_path / "source")
    settings = {"recipe": RECIPES["weights only"]}
    interrupt(source, tmp_path / "out", stages=2, **settings)
    path = tmp_path / "out.partial" / "journal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    DAMAGED[damage](lines[2])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    with pytest.raises(CheckpointError, match="restart=True"):
        compress(source, tmp_path / "out", **settings)
    assert path.exists()
    compress(source, tmp_path / "out", restart=True, **settings)
