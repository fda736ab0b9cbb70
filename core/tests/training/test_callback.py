"""CompressionCallback in loops by hand and in transformers' Trainer."""

from typing import ClassVar

import pytest
import torch
from transformers import Trainer, TrainingArguments

import coldpress
from coldpress import ArgumentError, ModelError, NumericsError, RecipeError
from coldpress.calibration.training_rows import PaddingCollator
from coldpress.plugin import Attachment
from coldpress.quantized import encoding_of
from coldpress.registry import find
from coldpress.testing.models import batches, tiny_llama
from coldpress.training import CompressionCallback

Constant, Distill = find("modifiers", "ConstantPruningModifier"), find("modifiers", "OutputDistillationModifier")
Magnitude, QAT = find("modifiers", "MagnitudePruningModifier"), find("modifiers", "QATModifier")
Rounding = find("modifiers", "QuantizationModifier")
LINEAR: dict = {"ignore": ["lm_head"]}


def rows(count=8, length=16):
    data = batches(rows=count, length=length, batch_size=1)
    return [{**{name: value[0] for name, value in one.items()}, "labels": one["input_ids"][0]} for one in data]


def pruned(**settings):
    return coldpress.oneshot(tiny_llama(**settings), Magnitude(mask_structure="2:4", **LINEAR))


def zeros_of(model):
    return {name: value == 0 for name, value in model.named_parameters() if value.ndim == 2 and (value == 0).any()}


def trainer(model, callback, folder, data=None, **settings):
    arguments = {"max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 2, **settings}
    return Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", **arguments
        ),
        train_dataset=rows() if data is None else data,
        data_collator=PaddingCollator(0),
        callbacks=[] if callback is None else [callback],
    )


def same(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("settings", [{"weight_decay": 0.1}, {"gradient_accumulation_steps": 2, "optim": "adafactor"}])
def test_zeros_outlive_every_optimizer_step(tmp_path, settings):
    model = pruned()
    zeros, before = zeros_of(model), {name: value.clone() for name, value in model.named_parameters()}

    trainer(model, CompressionCallback(Constant(**LINEAR)), tmp_path, **settings).train()

    after = dict(model.named_parameters())
    assert len(zeros) == 14
    assert all(torch.equal(after[name] == 0, gone) for name, gone in zeros.items())
    assert all(not torch.equal(after[name], before[name]) for name in zeros)


def test_a_callback_without_modifiers_changes_nothing_of_training(tmp_path):
    model, plain = tiny_llama(), tiny_llama()

    trainer(model, CompressionCallback(), tmp_path).train()
    trainer(plain, None, tmp_path).train()

    assert same(model, plain)


def test_a_loop_by_hand_trains_as_the_trainer_does(tmp_path):
    recipe = [Constant(**LINEAR), Distill(temperature=2.0, top_k=8)]
    model, other = pruned(), pruned()
    data = rows()
    trainer(model, CompressionCallback(recipe, distill_teacher=tiny_llama(seed=1)), tmp_path, max_grad_norm=0.0).train()

    callback = CompressionCallback(recipe, distill_teacher=tiny_llama(seed=1))
    callback.attach(other)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 4)
    other.train()
    order = trainer(other, None, tmp_path, data).get_train_dataloader()
    torch.manual_seed(42)
    for batch in order:
        other(**batch).loss.backward()
        optimizer.step()
        callback.step()
        schedule.step()
        optimizer.zero_grad()
    callback.detach()

    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_accumulated_batches_weigh_their_labels_as_one_batch_does(tmp_path):
    data = rows()
    for row in data[::2]:
        row["labels"] = row["labels"].clone()
        row["labels"][:9] = -100  # batches with different numbers of labels
    models = []
    for settings in ({"per_device_train_batch_size": 4}, {"gradient_accumulation_steps": 4}):
        model = tiny_llama()
        size = {"per_device_train_batch_size": 1, "max_steps": 1, "max_grad_norm": 0.0, "optim": "sgd", **settings}
        callback = CompressionCallback(Distill(orig_scale=0.5), distill_teacher=tiny_llama(seed=1))
        trainer(
            model,
            callback,
            tmp_path,
            data,
            learning_rate=0.1,
            lr_scheduler_type="constant",
            **{k: v for k, v in size.items() if k != "learning_rate"},
        ).train()
        models.append(model)

    assert not same(models[0], tiny_llama())
    assert all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True)
    )


def test_sparsity_rises_on_schedule_and_reaches_its_end(tmp_path):
    model = tiny_llama()
    made = trainer(
        model,
        CompressionCallback(Magnitude(final_sparsity=0.75, init_sparsity=0.25, update=0.2, **LINEAR)),
        tmp_path,
        max_steps=8,
        logging_steps=1,
    )

    made.train()

    seen = [entry["sparsity"] for entry in made.state.log_history if "loss" in entry]
    assert seen == sorted(seen)
    assert seen[0] < 0.5
    assert seen[-1] == pytest.approx(0.75, abs=1e-3)
    weights = [value for name, value in model.named_parameters() if name.endswith("proj.weight")]
    assert all((value == 0).float().mean().item() == pytest.approx(0.75, abs=1e-3) for value in weights)


def test_one_threshold_for_all_layers_prunes_them_unequally(tmp_path):
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(10)

    trainer(model, CompressionCallback(Magnitude(sparsity=0.5, apply_globally=True, **LINEAR)), tmp_path).train()

    weights = [value for name, value in model.named_parameters() if name.endswith("proj.weight")]
    total = sum(int((value == 0).sum()) for value in weights) / sum(value.numel() for value in weights)
    assert total == pytest.approx(0.5, abs=1e-3)
    assert (model.model.layers[0].mlp.up_proj.weight == 0).float().mean() < 0.1


@pytest.mark.parametrize("times", [{"start": 2.0}, {"end": 2.5}])
def test_masks_after_the_end_of_training_are_refused(tmp_path, times):
    made = trainer(tiny_llama(), CompressionCallback(Magnitude(sparsity=0.5, **times, **LINEAR)), tmp_path, max_steps=8)

    with pytest.raises(coldpress.SchemeError, match=r"do not fit into the 2 epochs of training"):
        made.train()


@pytest.mark.parametrize(
    ("length", "said"), [({}, "end is missing"), ({"num_steps": 6}, "end is missing"), ({"end": 1.0}, "not counted")]
)
def test_a_schedule_whose_epochs_nobody_counts_is_refused(length, said):
    callback = CompressionCallback(Magnitude(sparsity=0.5, end=length.pop("end", None), **LINEAR))
    callback.attach(tiny_llama(), **length)

    with pytest.raises(coldpress.SchemeError, match=said):
        callback.step()


# --- going on


def test_the_state_of_another_recipe_is_refused():
    states = {}
    for name, recipe in {"masks": Constant(**LINEAR), "rising": Magnitude(sparsity=0.75, **LINEAR)}.items():
        callback = CompressionCallback(recipe)
        callback.attach(pruned(), num_steps=2, num_epochs=1)
        callback.step()
        states[name] = callback, callback.state_dict()

    for name, other in (("masks", "rising"), ("rising", "masks")):
        with pytest.raises(coldpress.CheckpointError, match="the checkpoint is that of another recipe, as it has"):
            states[name][0].load_state_dict(states[other][1])
        states[name][0].load_state_dict(states[name][1])


def test_the_checkpoint_of_another_run_in_the_place_of_its_own_is_refused(tmp_path):
    for name, rate in (("one", 1e-2), ("other", 1e-3)):
        made = trainer(pruned(), CompressionCallback(Constant(**LINEAR)), tmp_path / name, learning_rate=rate)
        made.args.save_strategy, made.args.save_steps, made.args.logging_steps = "steps", 2, 1
        made.args.logging_strategy = "steps"
        made.train()

    made = trainer(pruned(), CompressionCallback(Constant(**LINEAR)), tmp_path / "one")
    with pytest.raises(coldpress.CheckpointError, match="is that of another run: set resume_from_checkpoint of its"):
        made.train(resume_from_checkpoint=str(tmp_path / "other" / "checkpoint-2"))
    made.args.resume_from_checkpoint = str(tmp_path / "other" / "checkpoint-2")
    made.train(resume_from_checkpoint=made.args.resume_from_checkpoint)


def test_after_training_the_loss_is_the_models_own(tmp_path):
    callback = CompressionCallback(Distill(), distill_teacher=tiny_llama(seed=1))
    made = trainer(tiny_llama(), callback, tmp_path, label_names=["labels"])
    made.compute_loss_func = callback.loss
    made.train()

    found = made.evaluate(rows())["eval_loss"]

    made.compute_loss_func = None
    assert found == pytest.approx(made.evaluate(rows())["eval_loss"], rel=1e-5)


# --- layers that are quantized


@pytest.mark.parametrize("ranges", ["frozen", "recomputed", "learned"])
def test_quantized_layers_are_trained_on_their_grids(tmp_path, ranges):
    model = coldpress.oneshot(tiny_llama(), Rounding(scheme="W4A16", group_size=32, **LINEAR))
    before = model.model.layers[0].mlp.up_proj.weight.clone()

    trainer(model, CompressionCallback(QAT(ranges=ranges)), tmp_path).train()

    weight = model.model.layers[0].mlp.up_proj.weight
    assert not torch.equal(weight, before)
    assert all(len(group.unique()) <= 16 for group in weight.detach().view(-1, 32))
    model.save_pretrained(tmp_path / "saved")
    loaded = coldpress.load_model(tmp_path / "saved")
    assert torch.equal(loaded.model.layers[0].mlp.up_proj.weight, weight)


def test_learned_scales_keep_their_signs(tmp_path):
    recipe = Rounding(scheme="W4A16", group_size=32, signed_scales=True, **LINEAR)
    model = coldpress.oneshot(tiny_llama(), recipe)
    before = encoding_of(model.model.layers[0].mlp.up_proj).quantized.scale.sign()

    trainer(model, CompressionCallback(QAT(ranges="learned")), tmp_path).train()

    after = encoding_of(model.model.layers[0].mlp.up_proj).quantized.scale
    assert before.unique().tolist() == [-1, 1]
    assert torch.equal(after.sign(), before)


def test_a_model_that_came_quantized_stays_so_without_a_modifier(tmp_path):
    model = coldpress.oneshot(tiny_llama(), Rounding(scheme="W8A8", **LINEAR))

    trainer(model, CompressionCallback(), tmp_path).train()

    model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" in (tmp_path / "saved" / "config.json").read_text()


def test_gradients_pass_through_rounded_inputs():
    model = coldpress.oneshot(tiny_llama(), Rounding(scheme="W8A8", targets=["re:.*layers.1.mlp.*"]))

    model(**batches()[0], labels=batches()[0]["input_ids"]).loss.backward()

    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_learned_scales_move_and_the_optimizer_must_have_them(tmp_path):
    model = coldpress.oneshot(tiny_llama(), Rounding(scheme="W4A16", group_size=32, **LINEAR))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with pytest.raises(ArgumentError, match="made before 14 learned scales"):
        CompressionCallback(QAT(ranges="learned")).attach(model, optimizer)

    assert not any("learned_scale" in name for name, _ in model.named_parameters())


# --- what a loss may be


class Nans(Attachment):
    """Outputs of a module that hold a NaN."""

    kind: ClassVar[str] = "nans"

    def outputs(self, module, y):
        return y * float("nan")


def test_a_loss_of_nan_names_step_batch_and_layer(tmp_path):
    from coldpress.attachment import attach

    model = tiny_llama()
    attach(model.model.layers[1].mlp.up_proj, Nans())

    with pytest.raises(NumericsError, match=r"step 1, batch 1 of it, first in model.layers.1.mlp.up_proj"):
        trainer(model, CompressionCallback(), tmp_path).train()


def test_weights_that_become_infinite_are_named(tmp_path):
    model = tiny_llama()

    with pytest.raises(NumericsError, match=r"the loss is .* at step [234], batch 1"):
        trainer(model, CompressionCallback(), tmp_path, learning_rate=1e30, max_grad_norm=0.0).train()


@pytest.mark.parametrize(
    ("recipe", "teacher", "error", "said"),
    [
        (Rounding(scheme="W8A8"), None, RecipeError, "does not act in training"),
        (Distill(), None, ModelError, "needs a teacher"),
        (QAT(), None, coldpress.SchemeError, "none of its layers is"),
        (Constant(), None, coldpress.SchemeError, "no weight of its layers is zero"),
        (Magnitude(mask_structure="2:5"), None, coldpress.SchemeError, "do not split into groups of 5"),
        (Constant(targets=["nothing"]), None, coldpress.TargetError, "'nothing' matches no layer"),
        (Distill(targets=["nothing"], comparison="square_head"), "same", coldpress.TargetError, "matches no module"),
        (Distill(), "wide", ModelError, "vocabulary of 300 tokens"),
        (Distill(), "itself", ModelError, "pass a copy"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_step(recipe, teacher, error, said):
    model = tiny_llama()
    teachers = {"same": tiny_llama(), "wide": tiny_llama(), "itself": model, None: None}
    teachers["wide"].resize_token_embeddings(300)

    with pytest.raises(error, match=said):
        CompressionCallback(recipe, distill_teacher=teachers[teacher]).attach(model)

    assert same(model, tiny_llama())
    assert all(
        parameter.requires_grad for other in (model, *teachers.values()) if other for parameter in other.parameters()
    )


def test_packed_weights_and_frozen_models_are_refused():
    packed, frozen = tiny_llama(), tiny_llama().requires_grad_(False)
    packed.model.layers[0].mlp.up_proj.register_buffer("weight_packed", torch.zeros(4, 4, dtype=torch.int32))

    with pytest.raises(ModelError, match=r"up_proj holds packed weights .*coldpress\.load_model"):
        CompressionCallback().attach(packed)
    with pytest.raises(ModelError, match="nothing to train"):
        CompressionCallback().attach(frozen)


def test_a_learning_rate_of_nan_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="learning_rate must be a finite number"):
        trainer(tiny_llama(), CompressionCallback(), tmp_path, learning_rate=float("nan")).train()
