"""Training in other people's loops: adapters of PEFT, and the Trainer of TRL."""

import json

import pytest
import torch
from safetensors.torch import load_file

import coldpress
from coldpress import ModelError, RecipeError
from coldpress.calibration.training_rows import PaddingCollator
from coldpress.registry import find
from coldpress.testing.models import tiny_llama, tiny_tokenizer
from coldpress.training import CompressionCallback, requantize_merged

peft = pytest.importorskip("peft")
trl = pytest.importorskip("trl")

Constant, Distill = find("modifiers", "ConstantPruningModifier"), find("modifiers", "OutputDistillationModifier")
Magnitude, Rounding = find("modifiers", "MagnitudePruningModifier"), find("modifiers", "QuantizationModifier")
LINEAR: dict = {"ignore": ["lm_head"]}
TEXTS = [f"{word} is a stone, and oil is pressed from olives." for word in ("this", "that", "one", "no", "each", "a")]
SHORT = {
    "dataset": TEXTS,
    "max_seq_length": 24,
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "learning_rate": 2e-2,
    "device": "cpu",
    "quiet": True,
    "measure": False,
    "save_strategy": "no",
}


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """A tiny Llama in four bits, as a folder."""
    folder = tmp_path_factory.mktemp("compressed")
    tiny_llama().save_pretrained(folder / "dense")
    tiny_tokenizer().save_pretrained(folder / "dense")
    coldpress.oneshot(
        str(folder / "dense"), Rounding(scheme="W4A16", group_size=32, **LINEAR), output_dir=folder / "model"
    )
    return folder / "model"


def adapters():
    return peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def test_adapters_beside_compressed_weights_are_merged_and_rounded_again(compressed, tmp_path):
    coldpress.train(str(compressed), output_dir=tmp_path / "out", peft_config=adapters(), **SHORT)

    before, after = load_file(compressed / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert moved
    assert all(name.endswith(("q_proj.weight_packed", "v_proj.weight_packed")) for name in moved)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["training"]["requantized_layers"] == 4
    trained = {line["name"] for line in report["layers"] if line["reason"] != "not trained"}
    assert trained == {f"model.layers.{block}.self_attn.{kind}_proj" for block in (0, 1) for kind in "qv"}
    coldpress.load_model(tmp_path / "out")


def test_adapters_alone_are_written_as_peft_writes_them(compressed, tmp_path):
    before = (compressed / "model.safetensors").read_bytes()

    model = coldpress.train(
        str(compressed), output_dir=tmp_path / "out", peft_config=adapters(), merge_adapters=False, **SHORT
    )

    again = peft.PeftModel.from_pretrained(coldpress.load_model(compressed), tmp_path / "out").eval()
    ids = torch.arange(5, 25)[None]
    assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
    assert (compressed / "model.safetensors").read_bytes() == before
    assert (tmp_path / "out" / "training_curve.svg").is_file()


@pytest.mark.parametrize("targets", ["re:.*q_proj", "re:.*q_proj.base_layer"])
@pytest.mark.parametrize("kind", [Constant, Magnitude])
def test_adapters_that_would_fill_zeros_are_refused(kind, targets):
    pruned = coldpress.oneshot(tiny_llama(), Magnitude(mask_structure="2:4", **LINEAR))
    settings = {"sparsity": 0.5} if kind is Magnitude else {}

    with pytest.raises(ModelError, match=r"q_proj.*: adapters \(PEFT\) are added to its weight"):
        CompressionCallback(kind(targets=targets, **settings)).attach(peft.get_peft_model(pruned, adapters()))


def test_merged_weights_are_off_their_grid_until_they_are_rounded(compressed):
    model = peft.get_peft_model(coldpress.load_model(compressed), adapters())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))

    merged = model.merge_and_unload()

    assert len(requantize_merged(merged)) == 4
    assert requantize_merged(merged) == []


def test_trl_trains_as_the_trainer_does(tmp_path):
    from transformers import Trainer, TrainingArguments

    tokenizer, results = tiny_tokenizer(), []
    ids = [tokenizer(text)["input_ids"][:24] for text in TEXTS]
    settings = {
        "output_dir": str(tmp_path),
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "bf16": False,
        "remove_unused_columns": False,
    }
    for kind in ("trainer", "trl"):
        model = coldpress.oneshot(tiny_llama(), Magnitude(mask_structure="2:4", **LINEAR))
        zeros = {name: value == 0 for name, value in model.named_parameters() if name.endswith("proj.weight")}
        callback = CompressionCallback([Constant(**LINEAR), Distill()], distill_teacher=tiny_llama(seed=1))
        if kind == "trl":
            import datasets

            rows = datasets.Dataset.from_dict({"input_ids": ids})
            made = trl.SFTTrainer(
                model=model,
                args=trl.SFTConfig(packing=False, **settings),
                train_dataset=rows,
                processing_class=tokenizer,
                callbacks=[callback],
                compute_loss_func=callback.loss,
            )
        else:
            rows = [{name: torch.tensor(one) for name in ("input_ids", "labels")} for one in ids]
            rows = [{**row, "attention_mask": torch.ones_like(row["input_ids"])} for row in rows]
            made = Trainer(
                model=model,
                args=TrainingArguments(**settings),
                train_dataset=rows,
                data_collator=PaddingCollator(0),
                callbacks=[callback],
            )
        made.train()
        weights = dict(model.named_parameters())
        assert all(torch.equal(weights[name] == 0, gone) for name, gone in zeros.items())
        results.append(model.state_dict())

    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_a_modifier_that_calibrates_is_refused_in_a_callback():
    with pytest.raises(RecipeError, match=r"QuantizationModifier calibrates .* coldpress\.oneshot"):
        CompressionCallback(Rounding(scheme="W8A16")).attach(tiny_llama())


def test_a_loss_that_the_loop_computes_itself_is_refused():
    model = tiny_llama()
    callback = CompressionCallback(Distill(), distill_teacher=tiny_llama(seed=1))
    callback.attach(model.train())

    model(input_ids=torch.arange(5, 25)[None]).logits.sum().backward()

    with pytest.raises(ModelError, match=r"compute_loss_func=callback\.loss"):
        callback.step()


def test_the_plugin_for_axolotl_adds_a_callback_that_keeps_zeros(tmp_path):
    import runpy
    from pathlib import Path
    from types import SimpleNamespace

    from transformers import Trainer, TrainingArguments

    example = runpy.run_path(str(Path(__file__).parents[1] / "examples/axolotl_plugin.py"))
    constant = {"ConstantPruningModifier": {"targets": ["re:.*proj.weight"], "start": 0}}
    recipe = {"finetuning_stage": {"finetuning_modifiers": constant}}
    model = coldpress.oneshot(tiny_llama(), Magnitude(mask_structure="2:4", **LINEAR))
    zeros = {name: value == 0 for name, value in model.named_parameters() if name.endswith("proj.weight")}
    ids = torch.arange(5, 29)
    settings = {"max_steps": 2, "use_cpu": True, "report_to": "none", "save_strategy": "no", "learning_rate": 1e-2}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), disable_tqdm=True, **settings),
        train_dataset=[{"input_ids": ids, "labels": ids}] * 4,
        data_collator=PaddingCollator(0),
    )

    for callback in example["ColdpressPlugin"]().add_callbacks_post_trainer(
        SimpleNamespace(coldpress={"recipe": recipe}), trainer
    ):
        trainer.add_callback(callback)
    trainer.train()

    weights = dict(model.named_parameters())
    assert all(torch.equal(weights[name] == 0, gone) for name, gone in zeros.items())
