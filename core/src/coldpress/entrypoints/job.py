"""Preparing: from arguments to a job that can be looked at, and run."""

import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from attrs import evolve, fields_dict

from coldpress import registry
from coldpress.arguments import (
    DATA_PREPARATION,
    DATA_SOURCE,
    DEFAULT_CALIBRATION_PIPELINE,
    DEFAULT_DATASET,
    DEFAULT_FORMAT,
    DEFAULT_PIPELINE,
    DENSE_FORMAT,
    Arguments,
    ModelArguments,
    OutputArguments,
    PipelineArguments,
    warn_idle,
)
from coldpress.calibration.batch import count_places
from coldpress.calibration.dataset import load_calibration
from coldpress.checkpoint import CheckpointWriter, Format
from coldpress.checkpoint.companion import Origin
from coldpress.checkpoint.ranked import output_of
from coldpress.checkpoint.untouched import Untouched, read_files
from coldpress.distributed import ALONE, Ranks, Share
from coldpress.entrypoints.experts import open_experts, report_refused
from coldpress.entrypoints.opening import Opened, open_model, report_extra
from coldpress.entrypoints.places import check_apart, check_named
from coldpress.errors import ArgumentError, BrokenPluginError, ModelError
from coldpress.experts import FewTokens
from coldpress.models import load_processor, load_tokenizer
from coldpress.models.described import warn_of_decoded, warn_of_undescribed
from coldpress.models.handed_over import handed_over
from coldpress.models.tie import untie_embeddings
from coldpress.modifier import expanded
from coldpress.pipeline import Pipeline
from coldpress.recipe import SEVERAL, Choice, Recipe, read_recipe, structure_settings
from coldpress.report import Progress
from coldpress.run.ignore import with_heads
from coldpress.run.job import Job
from coldpress.state import State

log = logging.getLogger(__name__)


def prepare(
    arguments: Arguments,
    *,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
    open_with: Callable[[Arguments], Opened] = open_model,
) -> Job:
    """Everything up to the first stage: the recipe is read, the model opened, data are tokenized, layers are planned.

    A model that is larger than memory has no weights yet, and nothing is written.

    Args:
        arguments: of `oneshot`, parsed.
        progress: what a person sees while it runs; None for a bar, unless the arguments say quiet.
        ranks: that compress the model together.
        open_with: opens the model; `open_empty` for one that is planned and not run.

    Returns:
        A job; `job.state.plan` has the quantizer and scheme of each layer, `job.run()` does it.

    Raises:
        ColdpressError: the job could not end well.
    """
    arguments = _with_plain_model(arguments)
    recipe = _recipe(arguments)
    pipeline, form = _pipeline(recipe), output_format(recipe)
    _check_output(arguments, form)
    writer = _writer(arguments.output, ranks)
    sources = _sources(arguments.model.model)  # as they are before the first is read
    opened = open_with(arguments)
    recipe = evolve(recipe, modifiers=with_heads(recipe.modifiers, opened.model))
    refused = _open_experts(arguments, recipe, opened.model)
    progress = progress or Progress(quiet=arguments.output.quiet or not ranks.leads)
    state = _state(arguments, recipe, opened.model, progress)
    if ranks.size > 1:
        state.share = Share.of(ranks, [count_places(batch) or 0 for batch in state.batches])
    report_refused(state, refused)
    report_extra(state, opened.extra)
    origin = origin_of(arguments.model, opened)
    job = Job(
        recipe=recipe,
        state=state,
        pipeline=pipeline,
        output=None if writer is None else output_of(ranks, writer, form, origin),
        form=form,
        weights=opened.weights,
        origin=origin,
        sources=sources,
        progress=progress,
        keeps_codes=False,
    )
    job.plan()
    return job


def _check_output(arguments: Arguments, form: Format) -> None:
    """Complain about an output that a format cannot have, or that is the model's own folder."""
    if arguments.output.output_dir is not None:
        check_named(arguments.output.output_dir, form)
        check_apart(arguments.output.output_dir, arguments.model.model)


def _open_experts(arguments: Arguments, recipe: Recipe, model: Any) -> Mapping[str, str]:
    """Make layers of experts, and return those that cannot be, with the reason."""
    return open_experts(
        model,
        expanded(recipe.modifiers),
        all_experts=arguments.dataset.moe_calibrate_all_experts,
        few_tokens=FewTokens(arguments.dataset.moe_min_tokens, arguments.dataset.moe_few_tokens),
    )


def _with_plain_model(arguments: Arguments) -> Arguments:
    """The arguments with a model in memory taken out of its wrappers.

    Raises:
        ModelError: it cannot be compressed, or cannot be written.
    """
    model = arguments.model.model
    if isinstance(model, str):
        return arguments
    model = handed_over(model)
    warn_of_decoded(model)
    config = getattr(model, "config", None)
    if arguments.output.output_dir is not None and not callable(getattr(config, "save_pretrained", None)):
        raise ModelError(
            f"a {type(model).__name__} is no model of transformers, so no checkpoint of it can be written: leave "
            "output_dir out, and save what oneshot returns yourself"
        )
    if arguments.output.output_dir is not None:
        warn_of_undescribed(model)
    return arguments._replace(model=evolve(arguments.model, model=model))


def _recipe(arguments: Arguments) -> Recipe:
    """The recipe, completed by the arguments that may also stand in it."""
    settings = arguments.recipe
    if settings.recipe is None:
        raise ArgumentError("recipe is missing: pass a modifier, a list of them, a YAML file or YAML text")
    recipe = read_recipe(settings.recipe, arguments=settings.recipe_args, stage=settings.stage)
    if not recipe.modifiers:
        log.warning("the recipe has no modifiers: the model is written as it is")
    needy = any(modifier.needs().data for modifier in expanded(recipe.modifiers))
    default = DEFAULT_CALIBRATION_PIPELINE if needy else DEFAULT_PIPELINE
    return evolve(
        recipe,
        pipeline=_pipeline_choice(recipe, arguments.pipeline, default),
        format=format_choice(recipe, arguments),
    )


def _pipeline_choice(recipe: Recipe, arguments: PipelineArguments, default: str) -> Choice:
    """Which pipeline with which settings: an argument wins over the recipe."""
    named = Choice(arguments.pipeline) if arguments.pipeline else None
    choice = named or recipe.pipeline or Choice(default)
    known = fields_dict(registry.find("pipelines", choice.name))
    for name in arguments.pipeline_settings.keys() - known.keys():
        log.warning("%s has no effect: the pipeline %s has no such setting", name, choice.name)
    given = {name: value for name, value in arguments.pipeline_settings.items() if name in known}
    return evolve(choice, settings={**choice.settings, **given})


def format_choice(recipe: Recipe, arguments: Arguments) -> Choice:
    """Which format with which settings: an argument wins over the recipe."""
    named = arguments.output.format
    if not arguments.model.save_compressed:
        if named not in (None, DENSE_FORMAT):
            raise ArgumentError(f"save_compressed=False asks for dense weights, and format={named!r} for others")
        named = DENSE_FORMAT
    several = isinstance(named, tuple) and len(named) > 1
    name = named[0] if isinstance(named, tuple) and not several else named
    together: dict[str, Any] = {"formats": list(named or ())}
    given = Choice(SEVERAL, together) if several else Choice(str(name)) if name else None
    choice = given or recipe.format or Choice(DEFAULT_FORMAT)
    wanted = arguments.output.quantization_format
    return choice if wanted is None else evolve(choice, settings={**choice.settings, "quantization_format": wanted})


def _pipeline(recipe: Recipe) -> Pipeline:
    assert recipe.pipeline is not None
    name = recipe.pipeline.name
    pipeline = structure_settings(registry.find("pipelines", name), recipe.pipeline.settings, where=f"pipeline {name}")
    if not isinstance(pipeline, Pipeline):
        raise BrokenPluginError(f"the pipeline {name!r} is not a coldpress.Pipeline")
    return pipeline


def output_format(recipe: Recipe) -> Format:
    """The format that a recipe names, with its settings."""
    assert recipe.format is not None
    name = recipe.format.name
    form = structure_settings(registry.find("formats", name), recipe.format.settings, where=f"format {name}")
    if not isinstance(form, Format):
        raise BrokenPluginError(f"the format {name!r} is not a coldpress.Format")
    return form


def _writer(arguments: OutputArguments, ranks: Ranks) -> CheckpointWriter | None:
    """Of the checkpoint to be; complains now about a folder that is in the way, before any work is done."""
    if arguments.output_dir is None:
        return None
    settings = {"overwrite": arguments.overwrite, "restart": arguments.restart, "check": ranks.leads}
    return CheckpointWriter(arguments.output_dir, **settings)


def _state(arguments: Arguments, recipe: Recipe, model: Any, progress: Progress) -> State:
    """The model, its tokenizer, and the data if a modifier needs them."""
    seed, settings = arguments.recipe.seed, arguments.model
    if not settings.tie_word_embeddings:
        untie_embeddings(model)
    tokenizer = tokenizer_of(settings, model)
    needy = any(modifier.needs().data for modifier in expanded(recipe.modifiers))
    if needy:  # from a copy: how calibration cuts and pads texts must not be saved with the tokenizer
        apart = any(modifier.needs().batch_boundaries for modifier in expanded(recipe.modifiers))
        data = load_calibration(
            arguments.dataset,
            deepcopy(tokenizer),
            seed,
            model=model,
            apart=apart,
            processor=lambda: beside(load_processor, settings, model),
        )
        progress.say(data.summary.line())
        return State(
            model=model,
            tokenizer=tokenizer,
            batches=data.batches,
            calibration=data.summary.to_dict(),
            seed=seed,
        )
    asked = arguments.dataset.dataset != DEFAULT_DATASET  # which the command line passes unasked
    names = (*(["dataset"] if asked else []), *DATA_SOURCE, *DATA_PREPARATION)
    warn_idle(arguments.dataset, names, "no modifier of the recipe reads data")
    return State(model=model, tokenizer=tokenizer, seed=seed)


def _sources(model: Any) -> Untouched:
    """The files of a model that is named by its path."""
    path = Path(model) if isinstance(model, str) else None
    return Untouched.of(read_files(path) if path is not None and path.exists() else [])


def origin_of(settings: ModelArguments, opened: Opened) -> Origin | None:
    """The folder of the model, whose tokenizer is the run's unless another one was asked for."""
    if opened.origin is None or (settings.tokenizer is None and settings.processor is None):
        return opened.origin
    return evolve(opened.origin, has_tokenizer=False)


def tokenizer_of(settings: ModelArguments, model: Any) -> Any:
    """The tokenizer that was handed over, or the one beside the model; None where there is none."""
    asked = settings.tokenizer if settings.tokenizer is not None else settings.processor
    return asked if asked is not None and not isinstance(asked, str) else beside(load_tokenizer, settings, model)


def beside(load: Callable[..., Any], settings: ModelArguments, model: Any) -> Any:
    """What one of the loaders finds where the user says, or beside the model; None where an object was handed over."""
    asked = settings.tokenizer if settings.tokenizer is not None else settings.processor
    trust = settings.trust_remote_code_model
    if asked is None:
        return load(settings.model, model, trust_remote_code=trust, revision=settings.model_revision)
    return load(asked, model, trust_remote_code=trust) if isinstance(asked, str) else None
