"""train: a model is trained with the modifiers of a recipe active, on the Trainer of transformers."""

import logging
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, field, frozen
from torch import nn

from coldpress.arguments.keywords import with_signature
from coldpress.arguments.training_keywords import TrainKeywords
from coldpress.calibration.training_rows import load_training_rows, padding_collator
from coldpress.distributed.start import leave_at_exit
from coldpress.entrypoints import oneshot as one_shot
from coldpress.entrypoints.job import beside, tokenizer_of
from coldpress.entrypoints.modes import plain_modes
from coldpress.entrypoints.opening import Opened, open_model
from coldpress.entrypoints.places import check_apart, check_deletable, checkpoints_in, delete_checkpoints
from coldpress.entrypoints.trained import How, Trained, save_adapters, write_trained
from coldpress.entrypoints.training_arguments import TrainArguments, parse_train_arguments, trainer_arguments
from coldpress.entrypoints.training_stages import for_stage, stage_folder, stages_done
from coldpress.errors import ArgumentError, CheckpointError, ModelError, RecipeError
from coldpress.evaluation import perplexity
from coldpress.models import load_processor
from coldpress.models.handed_over import handed_over
from coldpress.modifier import QUANTIZES, expanded
from coldpress.quantized import encoding_of
from coldpress.recipe import Recipe, read_recipe
from coldpress.training.adapters import requantize_merged, trained_modules
from coldpress.training.callback import CompressionCallback
from coldpress.training.dtypes import dtypes_of, restore_dtypes

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger(__name__)

_HELD_OUT = 4096  # tokens that perplexity is measured on, before and after
_HALF = (torch.bfloat16, torch.float16)


def train(model: Any = None, recipe: Any = None, **arguments: "Unpack[TrainKeywords]") -> Any:
    """Train a model, compressed or not, with the modifiers of a recipe active.

        train("pruned", ConstantPruningModifier(), dataset="texts.jsonl", output_dir="out", learning_rate=1e-5)

    Modifiers that act in training (pruning, distillation, QATModifier) do so; all others are run before, as `oneshot`
    runs them, in the order of the recipe.  Layers that are quantized, by such a modifier or in the checkpoint that is
    loaded, are trained on their grids, and the output has the same schemes.
    The loop is transformers' `Trainer`, whose checkpoints lie in `<output_dir>.checkpoints`; the output is written as
    `oneshot` writes it.  A model in half precision is trained in float32, and written in its own dtype.

    Args:
        model: as `coldpress.oneshot` takes it; one that is in memory is changed.
        recipe: as `coldpress.oneshot` takes it; None trains a compressed model on its grids.
        **arguments: everything else: `ModelArguments`, `RecipeArguments`, `DatasetArguments`, `OutputArguments`,
            `TrainingArguments` of coldpress, and every one of transformers' own `TrainingArguments`.

    Returns:
        The trained model; None with `return_model=False`.

    Raises:
        ColdpressError: one of its kinds, saying what is wrong, where, and what to do; most of them before training.
    """
    parsed = parse_train_arguments({"model": model, "recipe": recipe, **arguments})
    found = run_training(parsed)
    return found.model if parsed.common.output.return_model else None


with_signature(train, TrainKeywords)


def run_training(arguments: TrainArguments) -> Trained:
    """The same, from parsed arguments; returns the model with what is told of its training."""
    leave_at_exit()  # the group that the Trainer makes
    with plain_modes():
        recipe = _recipe(arguments)
        if not arguments.training.run_stages:
            return _train(arguments, recipe)
        return _run_stages(arguments, recipe)


def _recipe(arguments: TrainArguments) -> Recipe:
    settings = arguments.common.recipe
    return read_recipe(
        [] if settings.recipe is None else settings.recipe, arguments=settings.recipe_args, stage=settings.stage
    )


def _run_stages(arguments: TrainArguments, recipe: Recipe) -> Trained:
    """One stage of a recipe after the other, each on the model that the one before made."""
    names = list(dict.fromkeys(recipe.stages))
    if None in names:
        raise RecipeError(["run_stages: every modifier of the recipe must be in a named stage"])
    parts = {
        f"{number}-{name}": evolve(
            recipe,
            modifiers=[one for one, other in zip(recipe.modifiers, recipe.stages, strict=True) if other == name],
            stages=[name] * recipe.stages.count(name),
        )
        for number, name in enumerate(names)
    }
    done = stages_done(arguments, parts)
    model: Any = stage_folder(arguments, list(parts)[done - 1]) if done else arguments.common.model.model
    found = None
    for number, (folder, part) in list(enumerate(parts.items()))[done:]:
        stage = for_stage(arguments, folder, model, recipe=part, recipe_args=None, stage=None)
        if number > done or not checkpoints_in(stage.checkpoints()):
            stage = evolve(stage, training=evolve(stage.training, resume_from_checkpoint=None))
        log.info("stage %s: %s", folder, ", ".join(type(one).__name__ for one in part.modifiers))
        if _acting(part):
            found = _train(stage, part)
        else:
            state = one_shot.run(stage.common)
            found = Trained(state.model, {"stage": part.stages[0]}, part)
        model = found.model
    assert found is not None
    return found


@frozen(kw_only=True, eq=False)
class Run:
    """What training needs, settled before it begins.

    Attributes:
        arguments: of the run.
        recipe: whole.
        model: to train; adapters are on it, if there are any.
        base: the model without adapters.
        opened: where it came from.
        tokenizer: of the model.
        dtypes: of the model's own tensors by name, in which the result is written.
        names: of the modules of the base.
        use_cache: of the model's configuration; None where it has no such setting.
        start: when the run began.
    """

    arguments: TrainArguments
    recipe: Recipe
    model: Any
    base: Any
    opened: Opened
    tokenizer: Any
    dtypes: Mapping[str, torch.dtype]
    names: frozenset[str]
    use_cache: bool | None
    start: float = field(factory=perf_counter)


def _train(arguments: TrainArguments, recipe: Recipe) -> Trained:
    _check_places(arguments)
    acting = _acting(recipe)
    run = _prepare(arguments, recipe)
    if not acting and not any(encoding_of(module) for module in run.base.modules()):
        raise RecipeError([_nothing_acts(recipe)])
    rows = _rows(run)
    callback = CompressionCallback(Recipe(acting), distill_teacher=arguments.training.distill_teacher)
    before = _measured(run)
    callback.attach(run.model)  # before the Trainer makes its folder: what cannot be trained leaves nothing behind
    try:
        trainer = _trainer(run, rows, callback)
        if _begins_anew(arguments) and trainer.is_world_process_zero():
            delete_checkpoints(arguments.checkpoints())  # a later resume must not find them
        outcome = trainer.train(resume_from_checkpoint=_resumed(arguments))
    finally:
        callback.detach()
    return _finish(run, trainer, outcome, before)


def _prepare(arguments: TrainArguments, recipe: Recipe) -> Run:
    """The model, calibrated by what does not act in training, in float32."""
    common = arguments.common
    if not isinstance(common.model.model, str):
        common = common._replace(model=evolve(common.model, model=handed_over(common.model.model)))
    common = common._replace(model=evolve(common.model, stream_weights=False))
    opened = open_model(common)
    model = opened.model
    _check_causal(model)
    before = [one for one in recipe.modifiers if not any(s.training() is not None for s in one.expand())]
    if before:
        model = _calibrated(arguments, common, evolve(recipe, modifiers=before, stages=[None] * len(before)), model)
    dtypes, names = dtypes_of(model), frozenset(name for name, _ in model.named_modules())
    half = next((one for one in dtypes.values() if one in _HALF), None)
    if half is not None and common.model.precision == "auto":
        log.info("%s: trained in float32, written in its own dtype", half)
        model.float()
    tokenizer = tokenizer_of(common.model, opened.model)
    adapted = _with_adapters(model, arguments.training.peft_config)
    return Run(
        arguments=arguments,
        recipe=recipe,
        model=adapted,
        base=model,
        opened=opened,
        tokenizer=tokenizer,
        dtypes=dtypes,
        names=names,
        use_cache=getattr(model.config, "use_cache", None),
    )


def _calibrated(arguments: TrainArguments, common: Any, recipe: Recipe, model: nn.Module) -> Any:
    """What `oneshot` makes of a model in memory."""
    settings = common._replace(
        model=evolve(common.model, model=model),
        recipe=evolve(common.recipe, recipe=recipe, recipe_args=None, stage=None),
        output=evolve(common.output, output_dir=None, overwrite=False, restart=False, return_model=True),
    )
    return one_shot.run(settings).model


def _acting(recipe: Recipe) -> list[Any]:
    """The modifiers of a recipe that act in training."""
    return [step for step in expanded(recipe.modifiers) if step.training() is not None]


def _nothing_acts(recipe: Recipe) -> str:
    named = ", ".join(type(one).__name__ for one in recipe.modifiers)
    if not named:
        return "recipe is missing, and the model is not compressed: there is nothing that training would keep or do"
    prunes = not any(QUANTIZES in step.traits for step in expanded(recipe.modifiers))
    advice = "add ConstantPruningModifier, which keeps zeros, or " if prunes else ""
    return f"{named} calibrates, and nothing of the recipe acts in training: {advice}use coldpress.oneshot"


def _rows(run: Run) -> Any:
    common, training = run.arguments.common, run.arguments.training
    return load_training_rows(
        common.dataset,
        run.tokenizer,
        common.recipe.seed,
        model=run.base,
        most=training.max_train_samples,
        processor=lambda: beside(load_processor, common.model, run.base),
    )


def _trainer(run: Run, rows: Any, callback: CompressionCallback) -> Any:
    from transformers import PrinterCallback, Trainer

    run.model.train()
    settings = trainer_arguments(run.arguments)
    settings.resume_from_checkpoint = _resumed(run.arguments)  # where the callback looks
    try:
        trainer = Trainer(
            model=run.model,
            args=settings,
            train_dataset=rows,
            data_collator=padding_collator(run.tokenizer),
            callbacks=[callback, *run.arguments.training.callbacks],
        )
    except (ValueError, ImportError) as error:
        raise ArgumentError(f"transformers' Trainer refuses this: {error}") from error
    if run.arguments.common.output.quiet:
        trainer.remove_callback(PrinterCallback)
    return trainer


def _measured(run: Run) -> dict[str, float]:
    """Loss and perplexity on held-out text; nothing where that cannot be measured."""
    if not run.arguments.training.measure or run.tokenizer is None:
        return {}
    window = min(512, _context(run.base))
    found = perplexity(run.model, run.tokenizer, window=window, max_tokens=_HELD_OUT)
    return {
        "perplexity": round(found.value, 4),
        "standard_error": round(found.standard_error, 4),
        "tokens": found.tokens,
    }


def _finish(run: Run, trainer: Any, outcome: Any, before: dict[str, float]) -> Trained:
    """Merge, measure, write."""
    model, training = run.model, run.arguments.training
    moved = trained_modules(model, run.names) if outcome.global_step else frozenset[str]()
    model.eval()
    if run.use_cache is not None:
        run.base.config.use_cache = run.use_cache  # which a Trainer switches off
    metrics: dict[str, Any] = {
        "steps": int(outcome.global_step),
        "train_loss": float(outcome.training_loss),
        "held_out_before": before,
        "history": [dict(entry) for entry in trainer.state.log_history],
    }
    if training.peft_config is not None and training.merge_adapters:
        model = model.merge_and_unload()
        metrics["requantized_layers"] = len(requantize_merged(model))
    found = evolve(run, model=model, base=model if training.merge_adapters else run.base)
    metrics["held_out_after"] = _measured(found)
    if training.merge_adapters:  # also where there are none
        restore_dtypes(model, run.dtypes)
    how: How = "trained" if training.peft_config is None else "adapters were merged"
    trained = Trained(model, metrics, run.recipe, seconds=perf_counter() - run.start, moved=moved, how=how)
    if not trainer.is_world_process_zero():
        return trained
    if training.peft_config is not None and not training.merge_adapters:
        save_adapters(model, run.arguments, trained)
        return trained
    write_trained(trained, run.arguments, opened=run.opened, tokenizer=run.tokenizer)
    return trained


def _with_adapters(model: Any, config: Any) -> Any:
    if config is None:
        return model
    try:
        from peft import get_peft_model
    except ImportError as error:
        raise ModelError("peft_config needs PEFT: pip install peft") from error
    return get_peft_model(model, config)


def _check_places(arguments: TrainArguments) -> None:
    """See that nothing is in the way, before any work.

    Raises:
        CheckpointError: the output or checkpoints of an earlier run are there, or what would be deleted is needed.
    """
    output = arguments.common.output
    check_apart(str(output.output_dir), arguments.common.model.model)
    one_shot.check_writable(output)
    folder = arguments.checkpoints()
    there = checkpoints_in(folder)
    resumed = arguments.training.resume_from_checkpoint
    if there and not resumed and not output.restart:
        raise CheckpointError(
            f"{folder} holds {len(there)} checkpoints of an earlier run: resume_from_checkpoint=True goes on from the "
            "last, restart=True begins anew and deletes them"
        )
    if _begins_anew(arguments):
        check_deletable(folder, arguments.common.model.model, arguments.training.distill_teacher)
    if resumed is True and not there:
        raise CheckpointError(f"resume_from_checkpoint=True, and {folder} holds no checkpoint")
    if isinstance(resumed, str) and not Path(str(_resumed(arguments))).is_dir():
        raise CheckpointError(f"resume_from_checkpoint: there is no folder {resumed!r}")


def _begins_anew(arguments: TrainArguments) -> bool:
    return arguments.common.output.restart and not arguments.training.resume_from_checkpoint


def _resumed(arguments: TrainArguments) -> Any:
    """The checkpoint to go on from: a path, or the name of one of the run's own; None for none."""
    resumed = arguments.training.resume_from_checkpoint or None
    own = arguments.checkpoints() / str(resumed)
    return str(own) if isinstance(resumed, str) and own.is_dir() else resumed


def _check_causal(model: Any) -> None:
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ModelError(
            f"a {type(model).__name__} has an encoder and a decoder: training is for causal language models"
        )


def _context(model: Any) -> int:
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) else 512
