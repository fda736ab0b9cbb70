"""coldpress.train: from a model and a recipe to a checkpoint, through the Trainer of transformers."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments

import coldpress
from coldpress import ArgumentError, CalibrationError, CheckpointError, ColdpressError, ModelError, RecipeError
from coldpress.calibration.training_rows import PaddingCollator, load_training_rows
from coldpress.cli import main
from coldpress.entrypoints.training_arguments import parse_train_arguments
from coldpress.registry import find
from coldpress.testing.models import tiny_llama, tiny_tokenizer
from coldpress.training import CompressionCallback

Constant, Distill = find("modifiers", "ConstantPruningModifier"), find("modifiers", "OutputDistillationModifier")
Magnitude, QAT = find("modifiers", "MagnitudePruningModifier"), find("modifiers", "QATModifier")
Rounding, GPTQ = find("modifiers", "QuantizationModifier"), find("modifiers", "GPTQModifier")
SLOW = pytest.mark.slow
LINEAR: dict = {"ignore": ["lm_head"]}
TEXTS = [f"{word} is a stone, and oil is pressed from olives." for word in ("this", "that", "one", "no", "each", "a")]
SHORT = {
    "dataset": TEXTS,
    "max_seq_length": 24,
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "device": "cpu",
    "quiet": True,
    "measure": False,
    "save_strategy": "no",
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A model in bfloat16 with its tokenizer, as a folder."""
    folder = tmp_path_factory.mktemp("dense") / "model"
    tiny_llama(dtype=torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pruned(dense, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("pruned") / "model")
    coldpress.oneshot(dense, Magnitude(mask_structure="2:4", **LINEAR), output_dir=folder, format="dense")
    return folder


def tensors(folder):
    return load_file(f"{folder}/model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_pruned_model_is_distilled_and_written_with_all_that_is_told_of_it(dense, pruned, tmp_path):
    out = tmp_path / "out"
    before = tensors(pruned)

    model = coldpress.train(
        pruned,
        [Constant(**LINEAR), Distill(temperature=2.0)],
        distill_teacher=dense,
        output_dir=out,
        format="dense",
        **{**SHORT, "measure": True, "logging_steps": 1},
    )

    after = tensors(out)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert all(torch.equal(before[n] == 0, after[n] == 0) for n in before if n.endswith("proj.weight"))
    assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])
    assert torch.equal(model.lm_head.weight, after["lm_head.weight"])
    told = json.loads((out / "report.json").read_text())
    assert told["training"]["steps"] == 4
    assert len([entry for entry in told["training"]["history"] if "loss" in entry]) == 4
    assert told["training"]["held_out_after"]["perplexity"] < told["training"]["held_out_before"]["perplexity"]
    assert {line["sparsity"] for line in told["layers"] if line["name"].endswith("proj")} == {0.5}
    assert "OutputDistillationModifier" in (out / "recipe.yaml").read_text()
    assert "polyline" in (out / "training_curve.svg").read_text()


@pytest.mark.parametrize("scheme", ["W4A16", *(pytest.param(one, marks=SLOW) for one in ("FP8_DYNAMIC", "W8A8"))])
def test_no_step_leaves_a_compressed_checkpoint_with_the_same_bytes(dense, tmp_path, scheme):
    more = {"group_size": 32} if scheme == "W4A16" else {}
    coldpress.oneshot(dense, Rounding(scheme=scheme, **more, **LINEAR), output_dir=tmp_path / "first")

    settings = {**SHORT, "num_train_epochs": 0}
    del settings["max_steps"]
    coldpress.train(str(tmp_path / "first"), output_dir=tmp_path / "second", **settings)

    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    report = json.loads((tmp_path / "second" / "report.json").read_text())
    assert {line["reason"] for line in report["layers"] if line["name"].endswith("proj")} == {"not trained"}


def test_a_compressed_checkpoint_is_trained_on_its_grids(dense, tmp_path):
    coldpress.oneshot(dense, Rounding(scheme="W4A16", group_size=32, **LINEAR), output_dir=tmp_path / "first")

    coldpress.train(str(tmp_path / "first"), output_dir=tmp_path / "second", **{**SHORT, "learning_rate": 1e-2})

    first, second = tensors(tmp_path / "first"), tensors(tmp_path / "second")
    codes = [name for name in first if name.endswith("weight_packed")]
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in codes)
    assert all(torch.equal(first[name], second[name]) for name in first if name.endswith("weight_scale"))


def test_what_calibrates_runs_first_and_what_it_quantized_is_trained(dense, tmp_path):
    weights = {"targets": ["Linear"], "weights": {"num_bits": 3, "group_size": 32}}
    recipe = [GPTQ(config_groups={"all": weights}, **LINEAR), QAT(ranges="learned")]

    coldpress.train(dense, recipe, output_dir=tmp_path / "out", **SHORT)
    coldpress.oneshot(dense, recipe[:1], output_dir=tmp_path / "start", dataset=TEXTS, max_seq_length=24)

    start, trained = tensors(tmp_path / "start"), tensors(tmp_path / "out")
    assert start.keys() == trained.keys()
    assert any(not torch.equal(start[name], trained[name]) for name in start if name.endswith("weight_scale"))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {line["status"] for line in report["layers"] if line["name"].endswith("proj")} == {"quantized"}


def test_the_same_recipe_in_a_trainer_gives_the_same_weights(pruned, dense, tmp_path):
    recipe = [Constant(**LINEAR), Distill()]
    ours = coldpress.train(pruned, recipe, distill_teacher=dense, output_dir=tmp_path / "out", format="dense", **SHORT)

    model = coldpress.load_model(pruned, dtype="float32", device="cpu").train()
    parsed = parse_train_arguments({"model": pruned, "output_dir": tmp_path / "out", **SHORT})
    rows = load_training_rows(parsed.common.dataset, tiny_tokenizer(), 0, model=model)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "theirs"),
        seed=0,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **parsed.trainer,
    )
    callback = CompressionCallback(recipe, distill_teacher=dense)
    Trainer(
        model=model, args=arguments, train_dataset=rows, data_collator=PaddingCollator(0), callbacks=[callback]
    ).train()

    assert same(ours.state_dict(), model.to(torch.bfloat16).state_dict())


class Killed(TrainerCallback):
    """Ends a run as a signal would, after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("recipe", ["gradual", *(pytest.param(one, marks=SLOW) for one in ("masks", "learned"))])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(pruned, dense, tmp_path, recipe):
    modifiers = {
        "masks": (pruned, [Constant(**LINEAR), Distill(top_k=4)]),
        "gradual": (dense, [Magnitude(final_sparsity=0.6, update=0.1, **LINEAR)]),
        "learned": (dense, [Rounding(scheme="W4A16", group_size=32, **LINEAR), QAT(ranges="learned")]),
    }
    source, steps = modifiers[recipe]
    settings = {**SHORT, "save_strategy": "steps", "save_steps": 1, "distill_teacher": dense, "max_steps": 5}
    coldpress.train(source, steps, output_dir=tmp_path / "whole", **settings)

    with pytest.raises(KeyboardInterrupt):
        coldpress.train(source, steps, output_dir=tmp_path / "cut", callbacks=[Killed(3)], **settings)
    assert not (tmp_path / "cut").exists()
    with pytest.raises(CheckpointError, match=r"2 checkpoints of an earlier run: resume_from_checkpoint=True"):
        coldpress.train(source, steps, output_dir=tmp_path / "cut", **settings)
    coldpress.train(source, steps, output_dir=tmp_path / "cut", resume_from_checkpoint=True, **settings)

    name = "model.safetensors"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_goes_on_from_a_checkpoint_elsewhere_whatever_lies_in_its_own_folder(dense, tmp_path):
    settings = {**SHORT, "save_strategy": "steps", "save_steps": 1}
    for name, sparsity in (("one", 0.6), ("other", 0.9)):
        pruning = Magnitude(final_sparsity=sparsity, update=0.1, **LINEAR)
        coldpress.train(dense, pruning, output_dir=tmp_path / name, **settings)
    shutil.rmtree(tmp_path / "other")

    pruning, where = Magnitude(final_sparsity=0.6, update=0.1, **LINEAR), tmp_path / "one.checkpoints" / "checkpoint-2"
    coldpress.train(dense, pruning, output_dir=tmp_path / "other", resume_from_checkpoint=str(where), **settings)

    assert same(tensors(tmp_path / "one"), tensors(tmp_path / "other"))


def test_each_tensor_is_written_in_its_own_dtype(tmp_path):
    model = tiny_llama(dtype=torch.bfloat16)
    model.model.norm.float()

    trained = coldpress.train(
        model, Magnitude(sparsity=0.5, **LINEAR), tokenizer=tiny_tokenizer(), output_dir=tmp_path / "out", **SHORT
    )

    found = tensors(tmp_path / "out")
    assert {name for name, tensor in found.items() if tensor.dtype == torch.float32} == {"model.norm.weight"}
    assert all(found[name].dtype == parameter.dtype for name, parameter in trained.named_parameters())
    assert {buffer.dtype for buffer in trained.buffers()} == {torch.float32}


def test_a_restart_forgets_the_run_before_it(pruned, tmp_path):
    out, saving = tmp_path / "out", {**SHORT, "save_strategy": "steps", "save_steps": 1}
    coldpress.train(pruned, Constant(**LINEAR), output_dir=out, **saving)
    (tmp_path / "out.checkpoints" / "checkpoint-best").mkdir()
    (tmp_path / "out.checkpoints" / "checkpoint-9").write_text("mine")

    with pytest.raises(KeyboardInterrupt):
        coldpress.train(
            pruned, Constant(**LINEAR), output_dir=out, overwrite=True, restart=True, callbacks=[Killed(2)], **saving
        )

    left = {path.name for path in (tmp_path / "out.checkpoints").iterdir()}
    assert left == {"checkpoint-1", "checkpoint-9", "checkpoint-best"}
    with pytest.raises(CheckpointError, match="is the folder of the model"):
        coldpress.train(
            str(tmp_path / "out.checkpoints" / "checkpoint-1"),
            Constant(),
            output_dir=tmp_path / "out",
            overwrite=True,
            restart=True,
            **saving,
        )


def test_a_restart_deletes_nothing_that_no_trainer_wrote(pruned, tmp_path):
    mine = tmp_path / "out.checkpoints" / "checkpoint-7"
    mine.mkdir(parents=True)

    with pytest.raises(CheckpointError, match=r"checkpoint-7 is not known for one, as it has no trainer_state\.json"):
        coldpress.train(pruned, Constant(**LINEAR), output_dir=tmp_path / "out", restart=True, **SHORT)

    assert mine.is_dir()


def test_stages_run_one_after_the_other(dense, tmp_path):
    recipe = """
prune_stage:
  prune_modifiers:
    MagnitudePruningModifier: {sparsity: 0.5, ignore: [lm_head], end: 0.5}
tune_stage:
  tune_modifiers:
    ConstantPruningModifier: {ignore: [lm_head]}
quantize_stage:
  quantize_modifiers:
    QuantizationModifier: {scheme: W8A16, ignore: [lm_head]}
"""
    out = tmp_path / "out"

    coldpress.train(dense, recipe, output_dir=out, run_stages=True, **SHORT)

    folders = sorted(path.name for path in out.iterdir() if not path.name.endswith(".checkpoints"))
    assert [name.partition("-")[0] for name in folders] == ["0", "1", "2"]
    last = coldpress.load_model(out / folders[-1])
    weights = [value for name, value in last.named_parameters() if name.endswith("proj.weight")]
    assert all((value == 0).float().mean() >= 0.5 for value in weights)
    assert "quantization_config" in json.loads((out / folders[-1] / "config.json").read_text())


STAGED = """
quantize_stage:
  quantize_modifiers:
    QuantizationModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head]}
train_stage:
  train_modifiers:
    QATModifier: {ranges: frozen}
"""


def test_stages_that_were_stopped_go_on_with_the_stage_that_was_not_ended(dense, tmp_path):
    settings = {**SHORT, "save_strategy": "steps", "save_steps": 1, "run_stages": True, "return_model": False}
    coldpress.train(dense, STAGED, output_dir=tmp_path / "whole", **settings)
    cut = {"output_dir": tmp_path / "cut", **settings}
    with pytest.raises(KeyboardInterrupt):
        coldpress.train(dense, STAGED, callbacks=[Killed(3)], **cut)
    first = (tmp_path / "cut" / "0-quantize_stage" / "report.json").stat().st_mtime_ns

    with pytest.raises(ArgumentError, match=r"'checkpoint-2' names one checkpoint, and run_stages"):
        coldpress.train(dense, STAGED, resume_from_checkpoint="checkpoint-2", **cut)
    with pytest.raises(CheckpointError, match=r"0-quantize_stage was made by another recipe"):
        coldpress.train(dense, STAGED.replace("W4A16", "W8A16"), resume_from_checkpoint=True, **cut)
    with pytest.raises(CheckpointError, match="holds neither a stage that was ended nor a checkpoint"):
        coldpress.train(dense, STAGED, resume_from_checkpoint=True, **{**cut, "output_dir": tmp_path / "none"})
    coldpress.train(dense, STAGED, resume_from_checkpoint=True, **cut)

    last = "1-train_stage/model.safetensors"
    assert (tmp_path / "cut" / "0-quantize_stage" / "report.json").stat().st_mtime_ns == first
    assert (tmp_path / "cut" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            {"recipe": Rounding(scheme="W8A8", **LINEAR), "learning_rat": 1},
            ArgumentError,
            "did you mean 'learning_rate'",
        ),
        ({"learning_rate": float("nan")}, ArgumentError, "learning_rate must be a finite number"),
        ({"num_train_epochs": 2}, ArgumentError, "both say how long"),
        ({"label_smoothing_factor": 0.1}, ArgumentError, "outside of the model"),
        ({"output_dir": None}, ArgumentError, "output_dir is missing"),
        ({"fsdp": "full_shard"}, ArgumentError, "train is data-parallel"),
        ({"resume_from_checkpoint": "checkpoint-3"}, CheckpointError, "there is no folder 'checkpoint-3'"),
        ({"recipe": None}, RecipeError, "nothing that training would keep or do"),
        ({"recipe": Magnitude(sparsity=0.5), "dataset": None}, CalibrationError, "training needs data"),
        ({"dataset": ["a"]}, CalibrationError, "nothing to predict"),
        (
            {"dataset": [{"input_ids": [5, 6, 7], "labels": [-100, -100, -100]}]},
            CalibrationError,
            "no token of its 1 samples has a label",
        ),
        ({"recipe": Distill()}, ModelError, "needs a teacher"),
        ({"resume_from_checkpoint": True}, CheckpointError, "holds no checkpoint"),
        ({"merge_adapters": False}, ArgumentError, "goes with peft_config"),
        ({"lr_scheduler_type": "steep"}, ArgumentError, "TrainingArguments refuse"),
    ],
)
def test_what_cannot_end_well_does_not_begin(pruned, tmp_path, change, error, said):
    arguments = {"recipe": Constant(**LINEAR), "output_dir": tmp_path / "out", **SHORT, **change}

    with pytest.raises(error, match=said):
        coldpress.train(pruned, **arguments)

    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_only_calibrates_is_refused(dense, tmp_path):
    with pytest.raises(RecipeError, match=r"SparseGPTModifier calibrates, and nothing .* add ConstantPruningModifier"):
        coldpress.train(
            dense, find("modifiers", "SparseGPTModifier")(sparsity=0.5), output_dir=tmp_path / "out", **SHORT
        )


def test_an_output_that_is_there_is_kept(pruned, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")

    with pytest.raises(ColdpressError, match="exists"):
        coldpress.train(pruned, Constant(**LINEAR), output_dir=tmp_path / "out", **SHORT)


@pytest.mark.parametrize(
    ("setting", "option"), [("output_dir=elsewhere", "--output"), ("seed=5", "seed"), ("max_steps=3", "max_steps")]
)
def test_what_has_an_option_of_its_own_is_not_set(setting, option, capsys, monkeypatch):
    line = f"coldpress train model -o out --max-steps 2 --set {setting}"
    monkeypatch.setattr("sys.argv", line.split())

    with pytest.raises(SystemExit):
        main()

    assert f"--set {setting}: {option} is given by an option of its own" in capsys.readouterr().err


def test_the_command_line_trains(pruned, tmp_path, capsys, monkeypatch):
    recipe, texts = tmp_path / "recipe.yaml", tmp_path / "texts.txt"
    recipe.write_text("modifiers: [ConstantPruningModifier: {ignore: [lm_head]}]")
    texts.write_text("\n".join(TEXTS))
    line = f"coldpress train {pruned} -r {recipe} --dataset {texts} --max-seq-length 24 --max-steps 2 --batch-size 2"
    monkeypatch.setattr(
        "sys.argv", [*line.split(), "--device", "cpu", "--set", "warmup_steps=1", "-o", str(tmp_path / "o")]
    )

    with pytest.raises(SystemExit) as ended:
        main()

    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "2 steps, mean loss" in said
    assert "perplexity after" in said
    shutil.rmtree(tmp_path / "o.checkpoints", ignore_errors=True)
