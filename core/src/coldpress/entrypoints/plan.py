"""plan: what a run will write, hold and take, before it begins."""

import os
import shutil
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

from attrs import evolve, fields_dict

from coldpress.arguments import Arguments, parse_arguments
from coldpress.arguments.keywords import PlanKeywords, with_signature
from coldpress.entrypoints.job import prepare
from coldpress.entrypoints.model_free import ModelFreeArguments, output_form
from coldpress.entrypoints.model_free import prepare as prepare_model_free
from coldpress.entrypoints.modes import plain_modes
from coldpress.entrypoints.opening import open_empty
from coldpress.errors import ArgumentError, CheckpointError
from coldpress.planning import Prediction, predict, predict_model_free
from coldpress.planning.division import read_profile
from coldpress.recipe import Recipe, read_recipe
from coldpress.report.words import in_bytes
from coldpress.spelling import suggest

if TYPE_CHECKING:
    from typing_extensions import Unpack


def plan(
    model: Any = None,
    recipe: Any = None,
    *,
    model_free: bool = False,
    ranks: int = 1,
    device_profile: str | Path | None = None,
    **arguments: "Unpack[PlanKeywords]",
) -> Prediction:
    """Say what `oneshot` with the same arguments will write, hold in memory and take; no weight is read.

        plan("smollm2", QuantizationModifier(scheme="W4A16", group_size=64, ignore=["lm_head"])).after
        plan("deepseek-ai/DeepSeek-V3", QuantizationModifier(scheme="W4A16"), model_free=True).after

    Recipe, model, data and plan of layers are prepared by the code that a run begins with.  Sizes are exact, but
    where experts are dropped or bits are chosen from data; memory and time are estimates, from shapes and from products
    that are measured for a quarter of a second.

    Args:
        model: as for `oneshot`.
        recipe: as for `oneshot`.
        model_free: plan what `model_free_ptq` will do, or `convert` where the recipe is None; of layers that stay
            quantized as they are, one of each kind is read.
        ranks: processes that share the work, as under torchrun.
        device_profile: a JSON file with the rates of the machine that it will run on, see `Rates`; None measures those
            of this one.
        **arguments: as for `oneshot`, or with `model_free`: `format`, `device`, `max_workers`, `revision`, `seed`,
            `overwrite`, `restart` and `output_dir`; without `output_dir` a run that writes one is planned, and free
            disk space is not looked at.

    Returns:
        The prediction; `to_dict()` is what JSON holds.

    Raises:
        ColdpressError: the run could not end well; says why, and what to do.
    """
    if not isinstance(ranks, int) or isinstance(ranks, bool) or ranks < 1:
        raise ArgumentError(f"ranks must be a whole number of at least 1, got {ranks!r}")
    if model_free:
        if ranks > 1 or device_profile is not None:
            raise ArgumentError("ranks and device_profile: what is compressed without the model runs in one process")
        settings: dict[str, Any] = {**arguments}
        return _without_model(model, recipe, **settings)
    rates = None if device_profile is None else read_profile(Path(device_profile))
    parsed = parse_arguments({"model": model, "recipe": recipe, **arguments})
    asked = parsed.output.output_dir
    with plain_modes():
        job = prepare(_with_output(parsed), open_with=open_empty)
        prediction = predict(job, ranks=ranks, rates=rates)
    if asked is not None:
        _check_room(Path(asked), prediction)
    return prediction


with_signature(plan, PlanKeywords)


def _without_model(
    model: Any, recipe: Any, *, format: str | None = None, output_dir: Any = None, **settings: Any
) -> Prediction:
    known = [one for one in fields_dict(ModelFreeArguments) if one not in ("model", "output")]
    for name in settings:
        if name not in known:
            near = suggest(name, [*known, "format", "output_dir"])
            raise ArgumentError(f"{name!r} is no argument of a plan with model_free=True{near}")
    steps = Recipe(()) if recipe is None else read_recipe(recipe)
    place = _nowhere() if output_dir is None else output_dir
    job = prepare_model_free(
        steps, output_form(steps, format), ModelFreeArguments(model=model, output=place, **settings)
    )
    prediction = predict_model_free(job)
    if output_dir is not None:
        _check_room(job.writer.output, prediction)
    return prediction


def _with_output(arguments: Arguments) -> Arguments:
    """The arguments with a place for the output, at which nothing is written."""
    if arguments.output.output_dir is not None:
        return arguments
    return arguments._replace(output=evolve(arguments.output, output_dir=_nowhere()))


def _nowhere() -> str:
    return str(Path(gettempdir()) / f"coldpress-plan-{os.getpid()}")


def _check_room(output: Path, prediction: Prediction) -> None:
    """Refuse an output that the disk has no room for.

    Raises:
        CheckpointError: says how much is needed, and how much there is.
    """
    there = next(path for path in (output, *output.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if prediction.disk > free:
        raise CheckpointError(
            f"{there}: the run needs {in_bytes(prediction.disk)} while it works, and {in_bytes(free)} are free; free "
            "some space, or name an output on another disk"
        )
