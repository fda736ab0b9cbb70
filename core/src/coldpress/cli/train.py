"""`coldpress train`: one model, one recipe whose modifiers act in training, one checkpoint."""

from pathlib import Path
from typing import Annotated, Any

import typer

from coldpress.arguments import DEFAULT_DATASET, DatasetArguments
from coldpress.arguments.checks import path
from coldpress.cli.console import out, print_path
from coldpress.cli.option import DTYPE, SEED, Device, Dtype, Quiet, Seed, default_of, option
from coldpress.errors import ArgumentError

_WHAT, _DATA, _TRAINER, _OUTPUT = "What to do", "Data", "Trainer", "Output"


def train(
    model: Annotated[
        str, typer.Argument(help="A folder, a hub id, or a file or name that a source reads.", show_default=False)
    ],
    *,
    recipe: Annotated[
        Path | None, option(_WHAT, "--recipe/-r", "FILE", "A YAML or JSON recipe.", shown="keep what is compressed")
    ] = None,
    recipe_arg: Annotated[
        list[str] | None, option(_WHAT, "--recipe-arg", "NAME=VALUE", "Fill ${name} in the recipe; repeatable.")
    ] = None,
    stage: Annotated[str | None, option(_WHAT, "--stage", "NAME", "Only these stages of the recipe.")] = None,
    run_stages: Annotated[bool, option(_WHAT, "--run-stages", None, "One stage after the other.")] = False,
    teacher: Annotated[str | None, option(_WHAT, "--teacher", "NAME", "Model that is distilled from.")] = None,
    dataset: Annotated[str, option(_DATA, "--dataset", "NAME", "A name, file, folder or hub id.")] = DEFAULT_DATASET,
    max_train_samples: Annotated[
        int | None, option(_DATA, "--max-train-samples", "N", "Samples that are used.", shown="all", least=1)
    ] = None,
    max_seq_length: Annotated[
        int | None, option(_DATA, "--max-seq-length", "N", "Tokens a sample at most.", shown="the model's", least=1)
    ] = default_of(DatasetArguments, "max_seq_length"),
    text_column: Annotated[str, option(_DATA, "--text-column", "NAME", "Column that holds the text.")] = default_of(
        DatasetArguments, "text_column"
    ),
    max_steps: Annotated[
        int | None, option(_TRAINER, "--max-steps", "N", "Optimizer steps.", shown="three epochs", least=1)
    ] = None,
    learning_rate: Annotated[float | None, option(_TRAINER, "--learning-rate", "X", "At its height.")] = None,
    batch_size: Annotated[
        int | None, option(_TRAINER, "--batch-size", "N", "Samples a batch, on each device.", least=1)
    ] = None,
    gradient_accumulation_steps: Annotated[
        int | None, option(_TRAINER, "--gradient-accumulation-steps", "N", "Batches a step.", least=1)
    ] = None,
    set: Annotated[
        list[str] | None,
        option(_TRAINER, "--set", "NAME=VALUE", "Any of transformers' TrainingArguments; repeatable."),
    ] = None,
    resume: Annotated[bool, option(_TRAINER, "--resume", None, "Go on from the last checkpoint.")] = False,
    output: Annotated[Path, option(_OUTPUT, "--output/-o", "DIR", "The checkpoint to write.")],
    overwrite: Annotated[bool, option(_OUTPUT, "--overwrite", None, "Replace DIR if it exists.")] = False,
    restart: Annotated[bool, option(_OUTPUT, "--restart", None, "Delete checkpoints of an earlier run.")] = False,
    dtype: Dtype = DTYPE,
    device: Device = None,
    seed: Seed = SEED,
    quiet: Quiet = False,
) -> None:
    """Train a model with the modifiers of a recipe active, and write a checkpoint.

    coldpress train smollm2-2of4 --recipe recipe.yaml --teacher smollm2 --max-steps 300 --output smollm2-trained
    """
    trainer = {
        "max_steps": max_steps,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
    }
    given = {name: value for name, value in trainer.items() if value is not None}
    ours = {
        "model": model,
        "recipe": recipe,
        "recipe_args": recipe_arg or None,
        "stage": stage,
        "run_stages": run_stages,
        "distill_teacher": teacher,
        "dataset": dataset,
        "max_train_samples": max_train_samples,
        "max_seq_length": max_seq_length,
        "text_column": text_column,
        "resume_from_checkpoint": resume or None,
        "output_dir": output,
        "overwrite": overwrite,
        "restart": restart,
        "precision": dtype,
        "device": device,
        "seed": seed,
        "quiet": quiet,
    }
    _run({**ours, **given, **_settings(set or [], {**ours, **given})})


def _settings(texts: list[str], given: dict[str, Any]) -> dict[str, Any]:
    """Values of `--set`, as YAML reads them.

    Raises:
        ArgumentError: one is no NAME=VALUE, or is given by an option of its own.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ArgumentError(f"--set takes NAME=VALUE, got {text!r}")
        if name in given:
            raise ArgumentError(f"--set {text}: {name} is given by an option of its own")
        if name in found:
            raise ArgumentError(f"--set gives {name} twice")
        try:
            found[name] = YAML(typ="safe").load(value)
        except YAMLError as error:
            raise ArgumentError(f"--set {text!r}: the value cannot be read as YAML") from error
    return found


def _run(arguments: dict[str, Any]) -> None:
    """Train, and say what came of it."""
    from coldpress.entrypoints.train import run_training
    from coldpress.entrypoints.training_arguments import parse_train_arguments

    trained = run_training(parse_train_arguments(arguments))
    if not arguments["quiet"]:
        metrics = trained.metrics
        out().print(f"{metrics.get('steps', 0)} steps, mean loss {metrics.get('train_loss', float('nan')):.4g}")
        for when in ("before", "after"):
            measured = metrics.get(f"held_out_{when}") or {}
            if measured:
                out().print(f"perplexity {when}: {measured['perplexity']:.4g} ± {measured['standard_error']:.2g}")
    print_path(Path(path(arguments["output_dir"])))
