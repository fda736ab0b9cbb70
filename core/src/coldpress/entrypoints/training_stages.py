"""The stages of a recipe, each with a folder of its own in the output, and how many of them are done."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve

from coldpress.entrypoints.places import checkpoints_in
from coldpress.entrypoints.training_arguments import TrainArguments
from coldpress.errors import ArgumentError, CheckpointError
from coldpress.recipe import Recipe, read_recipe, write_recipe


def for_stage(arguments: TrainArguments, folder: str, model: Any, **recipe: Any) -> TrainArguments:
    """The same for one stage of a recipe, with an output and a model of its own."""
    common, output = arguments.common, stage_folder(arguments, folder)
    place = arguments.training.checkpoint_dir
    return evolve(
        arguments,
        common=common._replace(
            model=evolve(common.model, model=model),
            recipe=evolve(common.recipe, **recipe),
            output=evolve(common.output, output_dir=output, return_model=True),
        ),
        training=evolve(
            arguments.training, run_stages=False, checkpoint_dir=None if place is None else str(Path(place) / folder)
        ),
    )


def stage_folder(arguments: TrainArguments, folder: str) -> str:
    """Where a stage is written."""
    return str(Path(str(arguments.common.output.output_dir)) / folder)


def stages_done(arguments: TrainArguments, parts: Mapping[str, Recipe]) -> int:
    """How many of the first stages an earlier run ended, where this one goes on with it; the last is not counted.

    Args:
        arguments: of the run.
        parts: folder of each stage to its recipe.

    Raises:
        ArgumentError: a checkpoint is named.
        CheckpointError: there is nothing to go on with, or a stage was made by another recipe.
    """
    resumed = arguments.training.resume_from_checkpoint
    if not resumed:
        return 0
    if resumed is not True:
        raise ArgumentError(
            f"resume_from_checkpoint={resumed!r} names one checkpoint, and run_stages has those of every stage: pass "
            "True, which goes on with the stage that was not ended"
        )
    done = 0
    for folder, part in list(parts.items())[:-1]:
        place = Path(stage_folder(arguments, folder))
        if not (place / "report.json").is_file():
            break
        made = read_recipe((place / "recipe.yaml").read_text(encoding="utf-8"))
        if write_recipe(Recipe(made.modifiers)) != write_recipe(Recipe(part.modifiers)):
            raise CheckpointError(
                f"{place} was made by another recipe, so the run does not go on with it: take the recipe that it was "
                "made by, or begin anew in another output_dir"
            )
        done += 1
    first = for_stage(arguments, next(iter(parts)), arguments.common.model.model)
    if not done and not checkpoints_in(first.checkpoints()):
        raise CheckpointError(
            f"resume_from_checkpoint=True, and {arguments.common.output.output_dir} holds neither a stage that was "
            "ended nor a checkpoint"
        )
    return done
