"""`coldpress convert`, and `coldpress compress --model-free`: what needs no model."""

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coldpress.arguments import DEFAULT_DATASET, DEFAULT_FORMAT, DatasetArguments
from coldpress.arguments.checks import path
from coldpress.cli.console import out, print_path
from coldpress.cli.option import Quiet, default_of, option
from coldpress.errors import ArgumentError

if TYPE_CHECKING:
    from coldpress.format import Format
    from coldpress.recipe import Recipe

_PREPARATION = ("num_calibration_samples", "max_seq_length", "batch_size", "text_column", "concatenate_data")
_OF_RUNNING = {
    **{"dataset": DEFAULT_DATASET, "pipeline": None, "precision": "auto", "log_dir": None},
    **{name: default_of(DatasetArguments, name) for name in _PREPARATION},
}
"""Options that act on a model that runs, and their defaults."""


def convert(
    model: Annotated[str, typer.Argument(metavar="IN", help="A folder or a hub id.", show_default=False)],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)],
    *,
    to: Annotated[str, option(None, "--to", "FORMAT", "compressed-tensors, dense, gptq or awq.")] = DEFAULT_FORMAT,
    max_workers: Annotated[
        int | None, option(None, "--max-workers", "N", "At the same time.", shown="one a core", least=1)
    ] = None,
    overwrite: Annotated[bool, option(None, "--overwrite", None, "Replace OUT if it exists.")] = False,
    restart: Annotated[
        bool, option(None, "--restart", None, "Discard what an interrupted run left; else go on with it.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Store a checkpoint in another way, without its model; nothing is quantized anew.

    coldpress convert openai/gpt-oss-20b gpt-oss-ct --to compressed-tensors
    """
    from coldpress.entrypoints.model_free import output_form
    from coldpress.recipe import Recipe

    recipe = Recipe(())
    settings = {"device": "cpu", "max_workers": max_workers, "overwrite": overwrite, "restart": restart}
    _work(recipe, output_form(recipe, to), model, output, quiet=quiet, **settings)


def run_model_free(settings: Mapping[str, Any], *, max_workers: int | None, quiet: bool) -> None:
    """What `coldpress compress --model-free` does.

    Args:
        settings: the arguments of `oneshot`.
        max_workers: as for `model_free_ptq`.
        quiet: no progress and no summary.

    Raises:
        ArgumentError: an option acts on a model that runs.
    """
    from coldpress.entrypoints.model_free import output_form

    given = {**of_model_free(settings), "check_tensors": settings["check_tensors"]}
    recipe, model, output = given.pop("recipe"), given.pop("model"), given.pop("output_dir")
    form = output_form(recipe, given.pop("format"))
    _work(recipe, form, model, output, quiet=quiet, max_workers=max_workers, **given)


def of_model_free(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `coldpress.plan(model_free=True)` that those of `oneshot` mean, but for `max_workers`.

    Raises:
        ArgumentError: an option acts on a model that runs.
    """
    from coldpress.recipe import read_recipe

    for name, default in _OF_RUNNING.items():
        if settings.get(name, default) != default:
            flag = "dtype" if name == "precision" else name.replace("_", "-")
            raise ArgumentError(f"--{flag} is for a model that runs, and with --model-free there is none")
    recipe = read_recipe(settings["recipe"], arguments=settings["recipe_args"], stage=settings["stage"])
    named = settings["format"] or [None]
    if len(named) > 1:
        raise ArgumentError("--format is given once with --model-free: convert the result to the other formats")
    names = ("model", "output_dir", "device", "seed", "overwrite", "restart")
    return {**{name: settings[name] for name in names}, "recipe": recipe, "format": named[0]}


def _work(recipe: "Recipe", form: "Format", model: str, output: Path, *, quiet: bool, **settings: Any) -> None:
    """Do it, and say what came of it."""
    from coldpress.entrypoints.model_free import ModelFreeArguments, prepare, run
    from coldpress.report import Progress
    from coldpress.report.memory import peak_memory, reset_peak_memory

    reset_peak_memory()
    start = perf_counter()
    arguments = ModelFreeArguments(model=model, output=output, **settings)
    job = prepare(recipe, form, arguments, progress=Progress(quiet=quiet))
    run(job)
    output = Path(path(output))
    if quiet:
        print_path(output)
        return
    from coldpress.cli.summary import summary

    seconds, stored = perf_counter() - start, job.opened.stored
    before = sum(stored.nbytes(name) for name in stored.names())
    out().print(summary(job.state, output, seconds=seconds, memory=peak_memory(), before=before))
    print_path(output)
