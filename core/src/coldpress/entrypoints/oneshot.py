"""oneshot: compress a model in one call."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
    parse_arguments,
    warn_idle,
)
from coldpress.calibration.dataset import load_batches
from coldpress.calibration.multimodal import forward_names
from coldpress.checkpoint import CheckpointWriter, Format
from coldpress.checkpoint.companion import Origin
from coldpress.checkpoint.output import Output
from coldpress.entrypoints.experts import open_experts, report_refused
from coldpress.entrypoints.opening import Opened, open_model
from coldpress.entrypoints.saving import offer_saving
from coldpress.errors import ArgumentError, BrokenPluginError
from coldpress.experts import linear_experts, linearize_experts
from coldpress.models import load_model, load_tokenizer, simulate_activations, simulated
from coldpress.models.tie import untie_embeddings
from coldpress.pipeline import Pipeline
from coldpress.recipe import Choice, Recipe, read_recipe, structure_settings
from coldpress.report import Progress
from coldpress.run.lifecycle import Run
from coldpress.run.preflight import averages_batches
from coldpress.state import State

log = logging.getLogger(__name__)


def oneshot(model: Any = None, recipe: Any = None, **arguments: Any) -> Any:
    """Compress a model after training, without changing a line of its code.

        oneshot("smollm2", QuantizationModifier(scheme="W4A16", group_size=64, ignore=["lm_head"]), output_dir="out")

    Args:
        model: a folder, a `.gguf` file, a hub id, `smollm2`, or a model that is already in memory, which is changed.
        recipe: a modifier, a list of them, a `Recipe`, a YAML or JSON file, or YAML text.
        **arguments: everything else; see `ModelArguments`, `RecipeArguments`, `DatasetArguments` and
            `OutputArguments`, whose attributes they are.  The names and defaults are those of llm-compressor.

    Returns:
        The compressed model: weights that the checkpoint's codes stand for, and quantization of activations
        simulated on its forward, so that what is evaluated is what will be served.  Where weights were streamed, it
        is loaded from the output.  None with `return_model=False`.

    Raises:
        ColdpressError: one of its kinds, saying what is wrong, where, and what to do.  No output is left behind but for
            finished stages, in `<output_dir>.partial`, after which the same call goes on.
    """
    parsed = parse_arguments({"model": model, "recipe": recipe, **arguments})
    state = run(parsed)
    return state.model if parsed.output.return_model else None


def run(arguments: Arguments, *, progress: Progress | None = None) -> State:
    """The same, from parsed arguments; returns the whole state, with the report of every layer.

    With `return_model=False` the weights of the state's model may be missing (on the meta device).
    """
    progress = progress or Progress(quiet=arguments.output.quiet)
    with _logged(arguments.output.log_dir):
        recipe = _recipe(arguments)
        pipeline = _pipeline(recipe)
        form = _format(recipe)
        output = _output(form, arguments.output)
        with output or nullcontext():
            opened = open_model(arguments)
            refused = open_experts(
                opened.model, recipe.modifiers, all_experts=arguments.dataset.moe_calibrate_all_experts
            )
            state = _state(arguments, recipe, opened.model)
            report_refused(state, refused)
            job = Run(
                recipe=recipe,
                state=state,
                pipeline=pipeline,
                output=output,
                weights=opened.weights,
                origin=_origin(arguments.model, opened),
                progress=progress,
            )
            report = job.execute()
    if output is None:
        offer_saving(job, form, report)
    elif opened.weights is not None and arguments.output.return_model:
        state.model = _finished(arguments, state)
    return state


def _recipe(arguments: Arguments) -> Recipe:
    """The recipe, completed by the arguments that may also stand in it."""
    settings = arguments.recipe
    if settings.recipe is None:
        raise ArgumentError("recipe is missing: pass a modifier, a list of them, a YAML file or YAML text")
    recipe = read_recipe(settings.recipe, arguments=settings.recipe_args, stage=settings.stage)
    needy = any(modifier.needs_data() for modifier in recipe.modifiers)
    default = DEFAULT_CALIBRATION_PIPELINE if needy else DEFAULT_PIPELINE
    return evolve(
        recipe,
        pipeline=_pipeline_choice(recipe, arguments.pipeline, default),
        format=_format_choice(recipe, arguments),
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


def _format_choice(recipe: Recipe, arguments: Arguments) -> Choice:
    """Which format with which settings: an argument wins over the recipe."""
    named = arguments.output.format
    if not arguments.model.save_compressed:
        if named not in (None, DENSE_FORMAT):
            raise ArgumentError(f"save_compressed=False asks for dense weights, and format={named!r} for others")
        named = DENSE_FORMAT
    choice = Choice(named) if named else recipe.format or Choice(DEFAULT_FORMAT)
    wanted = arguments.output.quantization_format
    return choice if wanted is None else evolve(choice, settings={**choice.settings, "quantization_format": wanted})


def _pipeline(recipe: Recipe) -> Pipeline:
    assert recipe.pipeline is not None
    name = recipe.pipeline.name
    pipeline = structure_settings(registry.find("pipelines", name), recipe.pipeline.settings, where=f"pipeline {name}")
    if not isinstance(pipeline, Pipeline):
        raise BrokenPluginError(f"the pipeline {name!r} is not a coldpress.Pipeline")
    return pipeline


def _format(recipe: Recipe) -> Format:
    assert recipe.format is not None
    name = recipe.format.name
    form = structure_settings(registry.find("formats", name), recipe.format.settings, where=f"format {name}")
    if not isinstance(form, Format):
        raise BrokenPluginError(f"the format {name!r} is not a coldpress.Format")
    return form


def _output(form: Format, arguments: OutputArguments) -> Output | None:
    """The checkpoint to be; complains now about a folder that is in the way, before any work is done."""
    if arguments.output_dir is None:
        return None
    writer = CheckpointWriter(arguments.output_dir, overwrite=arguments.overwrite, restart=arguments.restart)
    return Output(writer, form)


def _state(arguments: Arguments, recipe: Recipe, model: Any) -> State:
    """The model, its tokenizer, and the data if somebody reads them."""
    seed, settings = arguments.recipe.seed, arguments.model
    if not settings.tie_word_embeddings:
        untie_embeddings(model)
    tokenizer = _tokenizer(settings, model)
    needy = any(modifier.needs_data() for modifier in recipe.modifiers)
    if needy:  # from a copy: how calibration cuts and pads texts must not be saved with the tokenizer
        apart = averages_batches(recipe.modifiers, model)
        takes = forward_names(model)
        batches = load_batches(arguments.dataset, deepcopy(tokenizer), seed, apart=apart, takes=takes)
    else:
        asked = arguments.dataset.dataset != DEFAULT_DATASET  # which the command line passes unasked
        names = (*(["dataset"] if asked else []), *DATA_SOURCE, *DATA_PREPARATION)
        warn_idle(arguments.dataset, names, "no modifier of the recipe reads data")
        batches = []
    return State(model=model, tokenizer=tokenizer, batches=batches, seed=seed)


def _origin(settings: ModelArguments, opened: Opened) -> Origin | None:
    """The folder of the model, whose tokenizer is the run's unless another one was asked for."""
    if opened.folder is None:
        return None
    return Origin(opened.folder, has_tokenizer=settings.tokenizer is None and settings.processor is None)


def _finished(arguments: Arguments, state: State) -> Any:
    """The compressed model, loaded from the output; what a format does not keep is taken from the run."""
    settings, before = arguments.model, state.model
    model = load_model(
        arguments.output.output_dir,
        dtype=next((parameter.dtype for parameter in before.parameters()), "auto"),
        device=settings.device,
        trust_remote_code=settings.trust_remote_code_model,
    )
    if linear_experts(before):
        linearize_experts(model)
    for name, quantized in simulated(before):
        simulate_activations(model.get_submodule(name), quantized)
    return model


def _tokenizer(settings: ModelArguments, model: Any) -> Any:
    """The tokenizer that was handed over, or the one beside the model; None where there is none."""
    asked = settings.tokenizer if settings.tokenizer is not None else settings.processor
    if asked is not None and not isinstance(asked, str):
        return asked
    trust = settings.trust_remote_code_model
    if asked is not None:
        return load_tokenizer(asked, model, trust_remote_code=trust)
    return load_tokenizer(settings.model, model, trust_remote_code=trust, revision=settings.model_revision)


@contextmanager
def _logged(folder: str | None) -> Iterator[None]:
    """What this package logs, also written to a file in `folder`."""
    if folder is None:
        yield
        return
    path = Path(folder) / "oneshot.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"log_dir: cannot write {path}: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("coldpress")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
