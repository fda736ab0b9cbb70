"""`coldpress convert`, and `coldpress compress --model-free`: what needs no model."""

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coldpress.arguments import DATA_PREPARATION, DATA_SOURCE, DEFAULT_DATASET, DEFAULT_FORMAT, DatasetArguments
from coldpress.arguments.checks import path
from coldpress.cli.option import Json, Quiet, default_of, option
from coldpress.errors import ArgumentError

if TYPE_CHECKING:
    from coldpress.format import Format
    from coldpress.recipe import Recipe

_OF_MIXTURES = ("moe_calibrate_all_experts", "moe_min_tokens", "moe_few_tokens")
_OF_DATA = (*DATA_SOURCE, *DATA_PREPARATION, *_OF_MIXTURES, "use_loss_mask")
_OF_RUNNING = {
    **{"dataset": DEFAULT_DATASET, "pipeline": None, "precision": "auto", "log_dir": None},
    **{"trust_remote_code_model": False},
    **{name: default_of(DatasetArguments, name) for name in _OF_DATA},
}
"""Options that act on a model that runs, and their defaults."""
_FLAGS = {"precision": "dtype", "trust_remote_code_model": "trust-remote-code"}


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
    as_json: Json = False,
) -> None:
    """Store a checkpoint in another way, without its model; nothing is quantized anew.

    coldpress convert openai/gpt-oss-20b gpt-oss-ct --to compressed-tensors
    """
    from coldpress.entrypoints.model_free import output_form
    from coldpress.recipe import Recipe

    recipe = Recipe(())
    settings = {"device": "cpu", "max_workers": max_workers, "overwrite": overwrite, "restart": restart}
    place = (model, output)
    _work("convert", recipe, output_form(recipe, to), place, quiet=quiet, as_json=as_json, **settings)


def run_model_free(settings: Mapping[str, Any], *, max_workers: int | None, quiet: bool, as_json: bool) -> None:
    """What `coldpress compress --model-free` does.

    Args:
        settings: the arguments of `oneshot`.
        max_workers: as for `model_free_ptq`.
        quiet: no progress and no summary.
        as_json: JSON in place of the summary.

    Raises:
        ArgumentError: an option acts on a model that runs.
    """
    from coldpress.entrypoints.model_free import output_form

    given = {**of_model_free(settings), "check_tensors": settings["check_tensors"]}
    recipe, model, output = given.pop("recipe"), given.pop("model"), given.pop("output_dir")
    form = output_form(recipe, given.pop("format"))
    talk = {"quiet": quiet, "as_json": as_json}
    _work("compress", recipe, form, (model, output), **talk, max_workers=max_workers, **given)


def of_model_free(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `coldpress.plan(model_free=True)` that those of `oneshot` mean, but for `max_workers`.

    Raises:
        ArgumentError: an option acts on a model that runs.
    """
    from coldpress.recipe import read_recipe

    for name, default in _OF_RUNNING.items():
        if settings.get(name, default) != default:
            flag = _FLAGS.get(name, name.replace("_", "-"))
            raise ArgumentError(f"--{flag} is for a model that runs, and with --model-free there is none")
    recipe = read_recipe(settings["recipe"], arguments=settings["recipe_args"], stage=settings["stage"])
    named = settings["format"] or [None]
    if len(named) > 1:
        raise ArgumentError("--format is given once with --model-free: convert the result to the other formats")
    names = ("model", "output_dir", "device", "seed", "overwrite", "restart")
    return {**{name: settings[name] for name in names}, "recipe": recipe, "format": named[0]}


def _work(
    command: str,
    recipe: "Recipe",
    form: "Format",
    place: tuple[str, Path],
    *,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Take the model of a place to the folder of it, and say what came of it."""
    from coldpress.cli.outcome import print_outcome
    from coldpress.entrypoints.model_free import ModelFreeArguments, prepare, run
    from coldpress.report import Progress
    from coldpress.report.memory import peak_memory, reset_peak_memory

    model, output = place
    reset_peak_memory()
    start = perf_counter()
    arguments = ModelFreeArguments(model=model, output=output, **settings)
    job = prepare(recipe, form, arguments, progress=Progress(quiet=quiet))
    run(job)
    output = Path(path(output))
    seconds, stored = perf_counter() - start, job.opened.stored
    before = sum(stored.nbytes(name) for name in stored.names())
    measured = {"seconds": seconds, "memory": peak_memory(), "before": before}
    print_outcome(command, job.state, output, quiet=quiet, as_json=as_json, **measured)
