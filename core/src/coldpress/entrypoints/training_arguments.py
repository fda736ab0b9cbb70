"""The arguments of `coldpress.train`: ours by subject, and those of transformers' TrainingArguments."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import fields_dict, frozen

from coldpress.arguments import Arguments, TrainingArguments, argument_names, parse_arguments
from coldpress.errors import ArgumentError, ModelError
from coldpress.spelling import suggest
from coldpress.training.progress import learning_rate_problem

_OURS = ("output_dir", "seed", "resume_from_checkpoint")  # names that transformers has too
_THEIRS = ("dataloader_num_workers",)  # of transformers here: in `oneshot` it has no effect


@frozen(eq=False)
class TrainArguments:
    """Everything that a training run is told.

    Attributes:
        common: model, recipe, data, output, as for `oneshot`.
        training: what only training has.
        trainer: arguments of transformers' TrainingArguments by name.
    """

    common: Arguments
    training: TrainingArguments
    trainer: Mapping[str, Any]

    def checkpoints(self) -> Path:
        """The folder of the Trainer's checkpoints."""
        return Path(self.training.checkpoint_dir or f"{self.common.output.output_dir}.checkpoints")


def parse_train_arguments(given: Mapping[str, Any]) -> TrainArguments:
    """Sort and check named values.

    Raises:
        ArgumentError: an unknown name, each with a suggestion, a value that cannot be meant, or two that contradict.
    """
    ours, theirs = fields_dict(TrainingArguments), trainer_argument_names()
    own = argument_names()
    unknown = [name for name in given if name not in {*ours, *theirs, *own}]
    if unknown:
        names = [*own, *ours, *theirs]
        raise ArgumentError("\n".join(f"{name!r} is not an argument{suggest(name, names)}" for name in unknown))
    passed = {name: value for name, value in given.items() if name in theirs and name not in {*own, *ours} - {*_THEIRS}}
    common = parse_arguments({n: v for n, v in given.items() if n in own and n not in {*ours, *passed} - {*_OURS}})
    training = TrainingArguments(**{name: value for name, value in given.items() if name in ours})
    if common.output.output_dir is None:
        raise ArgumentError("output_dir is missing: training writes checkpoints, and in the end the model")
    _check_trainer(passed)
    return TrainArguments(common, training, passed)


def trainer_argument_names() -> list[str]:
    """What transformers' TrainingArguments take.

    Raises:
        ModelError: accelerate is not installed, without which its Trainer does not run.
    """
    from dataclasses import fields

    from transformers import TrainingArguments as OfTransformers
    from transformers.utils import is_accelerate_available

    if not is_accelerate_available():
        raise ModelError("training needs accelerate: pip install 'coldpress[train]'")
    return [one.name for one in fields(OfTransformers) if one.init]


def trainer_arguments(arguments: TrainArguments) -> Any:
    """The object that a Trainer takes.

    Raises:
        ArgumentError: transformers refuses a value.
    """
    from transformers import TrainingArguments as OfTransformers

    common = arguments.common
    more = {"use_cpu": True} if common.model.device == "cpu" else {}
    settings = {
        "report_to": "none",
        "disable_tqdm": common.output.quiet,
        "logging_steps": 10,
        **more,
        **arguments.trainer,
        "output_dir": str(arguments.checkpoints()),
        "seed": common.recipe.seed,
    }
    try:
        return OfTransformers(**settings)
    except (TypeError, ValueError, ImportError) as error:
        raise ArgumentError(f"transformers' TrainingArguments refuse this: {error}") from error


def _check_trainer(passed: Mapping[str, Any]) -> None:
    if passed.get("max_steps", -1) > 0 and "num_train_epochs" in passed:
        raise ArgumentError(
            f"max_steps={passed['max_steps']} and num_train_epochs={passed['num_train_epochs']} both say how long to "
            "train: pass one of them"
        )
    problem = learning_rate_problem(passed.get("learning_rate", 5e-5))
    if problem is not None:
        raise ArgumentError(problem)
    sharded = [name for name in ("fsdp", "deepspeed") if passed.get(name)]
    if sharded or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise ArgumentError(
            f"{(sharded or ['FSDP'])[0]}: train is data-parallel, and writes whole weights: for shards put "
            "CompressionCallback into a Trainer of your own, which gathers them when it saves"
        )
    if passed.get("label_smoothing_factor"):
        raise ArgumentError(
            "label_smoothing_factor computes the loss outside of the model, where modifiers cannot change it: leave it "
            "out"
        )
