"""`coldpress train`: one model, one recipe whose modifiers act in training, one checkpoint."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from coldpress.arguments import DEFAULT_DATASET
from coldpress.arguments.checks import path
from coldpress.arguments.pairs import yaml_value
from coldpress.cli.console import out, print_json, print_path
from coldpress.cli.data_option import (
    DATA,
    PANEL,
    ChatTemplate,
    ChatTemplateKwargs,
    ColumnMap,
    Concatenate,
    DatasetConfigName,
    DatasetPath,
    Datasets,
    MaxSeqLength,
    RawKwargs,
    Splits,
    Streaming,
    TextColumn,
    UseLossMask,
    as_arguments,
)
from coldpress.cli.option import DTYPE, SEED, Device, Dtype, Json, Quiet, Seed, TrustRemoteCode, option
from coldpress.errors import ArgumentError

_WHAT, _TRAINER, _OUTPUT = "What to do", "Trainer", "Output"
_OF_TRAINER = ("max_steps", "learning_rate", "batch_size", "gradient_accumulation_steps")
_METRICS = ("steps", "train_loss", "held_out_before", "held_out_after")
_RENAMED = {
    "batch_size": "per_device_train_batch_size",
    "recipe_arg": "recipe_args",
    "teacher": "distill_teacher",
    "resume": "resume_from_checkpoint",
    "output": "output_dir",
    "dtype": "precision",
    "trust_remote_code": "trust_remote_code_model",
}


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
    dataset: Datasets = [DEFAULT_DATASET],  # noqa: B006  # typer copies it
    dataset_config_name: DatasetConfigName = DATA.dataset_config_name,
    dataset_path: DatasetPath = DATA.dataset_path,
    splits: Splits = DATA.splits,
    max_train_samples: Annotated[
        int | None, option(PANEL, "--max-train-samples", "N", "Samples that are used.", shown="all", least=1)
    ] = None,
    max_seq_length: MaxSeqLength = DATA.max_seq_length,
    text_column: TextColumn = DATA.text_column,
    column_map: ColumnMap = None,
    chat_template: ChatTemplate = DATA.chat_template,
    chat_template_kwargs: ChatTemplateKwargs = None,
    concatenate_data: Concatenate = DATA.concatenate_data,
    use_loss_mask: UseLossMask = DATA.use_loss_mask,
    streaming: Streaming = DATA.streaming,
    raw_kwargs: RawKwargs = None,
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
    trust_remote_code: TrustRemoteCode = False,
    seed: Seed = SEED,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a model with the modifiers of a recipe active, and write a checkpoint.

    coldpress train smollm2-2of4 --recipe recipe.yaml --teacher smollm2 --max-steps 300 --output smollm2-trained
    """
    options = dict(locals())
    trainer = {_RENAMED.get(name, name): options.pop(name) for name in _OF_TRAINER}
    given = {name: value for name, value in trainer.items() if value is not None}
    options |= {"recipe_arg": recipe_arg or None, "resume": resume or None}
    more, _ = options.pop("set"), options.pop("as_json")
    ours = {_RENAMED.get(name, name): value for name, value in as_arguments(options).items()}
    _run({**ours, **given, **_settings(more or [], {**ours, **given})}, as_json=as_json)


def _settings(texts: list[str], given: dict[str, Any]) -> dict[str, Any]:
    """Values of `--set`, as YAML reads them.

    Raises:
        ArgumentError: one is no NAME=VALUE, or is given by an option of its own.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ArgumentError(f"--set takes NAME=VALUE, got {text!r}")
        if name in given:
            raise ArgumentError(f"--set {text}: {name} is given by an option of its own")
        if name in found:
            raise ArgumentError(f"--set gives {name} twice")
        found[name] = yaml_value(value, f"--set {name}")
    return found


def _run(arguments: dict[str, Any], *, as_json: bool) -> None:
    """Train, and say what came of it."""
    from coldpress.entrypoints.train import run_training
    from coldpress.entrypoints.training_arguments import parse_train_arguments

    with redirect_stdout(sys.stderr):  # where the Trainer prints its losses
        metrics = run_training(parse_train_arguments(arguments)).metrics
    output = Path(path(arguments["output_dir"]))
    if as_json:
        found = {name: metrics.get(name) for name in _METRICS}
        print_json("train", {"output": str(output), **{n: None if one == {} else one for n, one in found.items()}})
        return
    if not arguments["quiet"]:
        out().print(f"{metrics.get('steps', 0)} steps, mean loss {metrics.get('train_loss', float('nan')):.4g}")
        for when in ("before", "after"):
            measured = metrics.get(f"held_out_{when}") or {}
            if measured:
                out().print(f"perplexity {when}: {measured['perplexity']:.4g} ± {measured['standard_error']:.2g}")
    print_path(output)
