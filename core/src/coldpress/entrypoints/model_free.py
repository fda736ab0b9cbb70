"""model_free_ptq and convert: a checkpoint compressed, or stored in another way, without building its model."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, field, frozen

from coldpress import registry
from coldpress.arguments import DEFAULT_FORMAT, DEFAULT_QUANTIZER
from coldpress.arguments.checks import at_least, is_a, path
from coldpress.checkpoint import CheckpointWriter
from coldpress.distributed.start import refuse_several
from coldpress.entrypoints.modes import plain_modes
from coldpress.entrypoints.places import check_apart, check_named, check_origin
from coldpress.errors import ArgumentError, UnknownPluginError
from coldpress.format import Format
from coldpress.models.loading import placement
from coldpress.modifier import Modifier
from coldpress.planning import predict_model_free
from coldpress.planning.prediction import summary_of
from coldpress.recipe import Choice, Recipe, read_recipe, structure_settings
from coldpress.report import SILENT, Progress, Report
from coldpress.run.every_tensor import check_files
from coldpress.schemes import Scheme
from coldpress.schemes.quantization_args import dumped
from coldpress.shardwise.job import ShardwiseJob
from coldpress.shardwise.opening import open_checkpoint
from coldpress.shardwise.outline import is_parameter
from coldpress.shardwise.workers import workers_by_default
from coldpress.spelling import suggest

log = logging.getLogger(__name__)


def model_free_ptq(
    model_stub: str | Path,
    save_directory: str | Path,
    scheme: Any = None,
    config: Any = None,
    ignore: Any = (),
    max_workers: int | str | None = None,
    device: Any = None,
    converter: Any = None,
    *,
    recipe: Any = None,
    format: str | None = None,
    revision: str = "main",
    seed: int = 0,
    overwrite: bool = False,
    restart: bool = False,
    check_tensors: bool = False,
    quiet: bool = False,
) -> Report:
    """Compress the tensors of a checkpoint, shard by shard, without building its model.

        model_free_ptq("deepseek-ai/DeepSeek-V3", "out", scheme="W4A16", ignore=["re:.*self_attn.*"])

    For models that no installed transformers builds, or that are far larger than memory: what is in memory are the
    layers that are worked on.  The names and files of the output are those of the checkpoint.  What is a layer is told
    by names and shapes; embeddings, output heads, routers and layers for multi-token prediction are left alone unless
    a target names them, exactly or by `re:`.  A checkpoint that is quantized already is decoded in float32, or kept as
    it is where that is what the recipe asks for, and where nothing of the recipe means a layer.

    Args:
        model_stub: a folder of safetensors files, or a hub id.
        save_directory: the folder that is written; it appears when everything is there.
        scheme: a preset by name (`W4A16`), a `Scheme`, or the fields of one.
        config: `config_groups`, and `ignore`, as a `quantization_config` has them, instead of `scheme`.
        ignore: layers to leave alone: names, `re:` patterns or class names.
        max_workers: groups of layers that are worked on at the same time; None or "auto" for one a core, four at most.
        device: where layers are compressed; None takes an accelerator if there is one.  Of several, the first is
            used, with a warning.
        converter: llm-compressor's; without effect, because what reads a checkpoint is chosen from its config.json.
        recipe: instead of `scheme`: modifiers that read no data, as `oneshot` takes them.
        format: name of the checkpoint format; None for that of the recipe, or compressed-tensors.
        revision: branch, tag or commit of a model on a hub.
        seed: of everything random.
        overwrite: replace `save_directory` if it exists.
        restart: discard what an interrupted run has left; otherwise it is gone on with.
        check_tensors: read every tensor once before the first is compressed, and refuse NaN and infinity then.
        quiet: no progress.

    Returns:
        What became of every layer.

    Raises:
        ColdpressError: one of its kinds, saying what is wrong, where, and what to do.  No output is left behind but for
            finished files, in `<save_directory>.partial`, after which the same call resumes.
    """
    if converter is not None:
        log.warning("converter has no effect: what reads the checkpoint is chosen from its config.json")
    if isinstance(device, list | tuple) and device:
        if len(device) > 1:
            log.warning("of %d devices, %s is used alone: layers are compressed on one", len(device), device[0])
        device = device[0]
    steps = _recipe(scheme, config, ignore, recipe)
    return _run(
        steps,
        output_form(steps, format),
        model=model_stub,
        output=save_directory,
        max_workers=max_workers,
        device=device,
        revision=revision,
        seed=seed,
        overwrite=overwrite,
        restart=restart,
        check_tensors=check_tensors,
        quiet=quiet,
    )


def convert(
    model_stub: str | Path,
    save_directory: str | Path,
    to: str = DEFAULT_FORMAT,
    *,
    max_workers: int | str | None = None,
    revision: str = "main",
    overwrite: bool = False,
    restart: bool = False,
    quiet: bool = False,
) -> Report:
    """Store a checkpoint in another way; nothing is quantized anew.

        convert("openai/gpt-oss-20b", "out", to="compressed-tensors")

    Codes and scales are moved, bit for bit, where the format holds them; other layers, and all of them in the format
    `dense`, are decoded in float32 and rounded to the dtype of the model.

    Args:
        model_stub: a folder of safetensors files, or a hub id.
        save_directory: the folder that is written.
        to: name of a checkpoint format in safetensors files: `compressed-tensors`, `dense`, `gptq` or `awq`.
        max_workers: as for `model_free_ptq`.
        revision: as for `model_free_ptq`.
        overwrite: as for `model_free_ptq`.
        restart: as for `model_free_ptq`.
        quiet: as for `model_free_ptq`.

    Returns:
        What became of every layer.

    Raises:
        ColdpressError: as for `model_free_ptq`.
    """
    steps = Recipe(())
    return _run(
        steps,
        output_form(steps, to),
        model=model_stub,
        output=save_directory,
        max_workers=max_workers,
        device="cpu",
        revision=revision,
        seed=0,
        overwrite=overwrite,
        restart=restart,
        quiet=quiet,
    )


@frozen(kw_only=True)
class ModelFreeArguments:
    """Where a checkpoint is, where the result goes, and with what it is made.

    Attributes:
        model: as for `model_free_ptq`.
        output: as `save_directory` of it.
        max_workers: as for it.
        device: as for it.
        revision: as for it.
        seed: as for it.
        overwrite: as for it.
        restart: as for it.
        check_tensors: as for it.
    """

    model: str = field(converter=path, validator=is_a(str))
    output: str = field(converter=path, validator=is_a(str))
    max_workers: int | str | None = None
    device: str | torch.device | None = None
    revision: str = field(default="main", validator=is_a(str))
    seed: int = field(default=0, validator=at_least(0))
    overwrite: bool = field(default=False, validator=is_a(bool))
    restart: bool = field(default=False, validator=is_a(bool))
    check_tensors: bool = field(default=False, validator=is_a(bool))


def prepare(
    recipe: Recipe, form: Format, arguments: ModelFreeArguments, *, progress: Progress | None = None
) -> ShardwiseJob:
    """Everything up to the first tensor: the checkpoint is opened, its layers are planned; nothing is written.

    Raises:
        ColdpressError: the job could not end well.
    """
    _, place = placement("auto", arguments.device)
    workers = _workers(arguments.max_workers)
    check_named(arguments.output, form)
    check_apart(arguments.output, arguments.model)
    writer = CheckpointWriter(arguments.output, overwrite=arguments.overwrite, restart=arguments.restart)
    opened = open_checkpoint(arguments.model, revision=arguments.revision)
    check_origin(arguments.output, opened.folder)
    job = ShardwiseJob(
        recipe=recipe,
        opened=opened,
        form=form,
        writer=writer,
        device=place,
        max_workers=workers,
        seed=arguments.seed,
        progress=progress or SILENT,
    )
    job.plan()
    if arguments.check_tensors:
        masks = {name for name in opened.weights.names() if not is_parameter(job.outline, name)}
        check_files(opened.weights, job.progress, extra=masks)
    return job


def _run(recipe: Recipe, form: Format, *, quiet: bool, **settings: Any) -> Report:
    refuse_several("compressing without the model")
    with plain_modes():
        return run(prepare(recipe, form, ModelFreeArguments(**settings), progress=Progress(quiet=quiet)))


def run(job: ShardwiseJob) -> Report:
    """Do what was prepared; the report keeps what was predicted beside what happened."""
    job.predicted.update(summary_of(predict_model_free(job)))
    return job.run()


def _recipe(scheme: Any, config: Any, ignore: Any, recipe: Any) -> Recipe:
    """The recipe that one of the three stands for.

    Raises:
        ArgumentError: none or several are given.
    """
    given = [name for name, value in (("scheme", scheme), ("config", config), ("recipe", recipe)) if value is not None]
    if len(given) != 1:
        problem = f"got {' and '.join(given)}" if given else "got none"
        raise ArgumentError(f"give one of scheme (a preset such as 'W4A16'), config and recipe; {problem}")
    ignored = _patterns(ignore)
    if recipe is not None:
        if ignored:
            raise ArgumentError("ignore goes with scheme or config; modifiers of a recipe have their own")
        return read_recipe(recipe)
    if config is not None:
        table = dumped(config)
        if not isinstance(table, Mapping) or not _is_filled(table.get("config_groups")):
            raise ArgumentError(f"config must have config_groups, a table of schemes, got {config!r}")
        groups = {name: _scheme(group) for name, group in table["config_groups"].items()}
        cache = table.get("kv_cache_scheme")
        ignored += [one for one in _patterns(table.get("ignore") or ()) if one not in ignored]
        return Recipe(_quantizer(config_groups=groups, ignore=ignored, **({"kv_cache_scheme": cache} if cache else {})))
    if isinstance(scheme, str):
        return Recipe(_quantizer(scheme=scheme, ignore=ignored))
    return Recipe(_quantizer(config_groups={"group_0": _scheme(scheme)}, ignore=ignored))


def _is_filled(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _scheme(value: Any) -> Scheme:
    """A scheme; one without targets means linear layers."""
    table = dumped(value)
    if isinstance(table, Mapping):
        value = Scheme.from_dict({**table, "targets": table.get("targets") or ["Linear"]})
    if not isinstance(value, Scheme):
        raise ArgumentError(f"a scheme is the name of a preset, a Scheme or a table of its fields, got {value!r}")
    if value.weights is None:
        raise ArgumentError(f"a scheme needs weights, for without a model nothing else is quantized; got {value!r}")
    return value if value.targets else evolve(value, targets=("Linear",))


def _quantizer(**settings: Any) -> Modifier:
    try:
        kind = registry.find("modifiers", DEFAULT_QUANTIZER)
    except UnknownPluginError as error:
        raise UnknownPluginError(f"{error}; a scheme needs it: pip install 'coldpress[quantization]'") from error
    modifier: Modifier = kind(**settings)
    return modifier


def output_form(recipe: Recipe, named: str | None) -> Format:
    """The format that is named, or else that of the recipe, or else the default."""
    if named is not None and not isinstance(named, str):
        raise ArgumentError(f"format must be the name of a checkpoint format, got {named!r}")
    choice = Choice(named) if named else recipe.format or Choice(DEFAULT_FORMAT)
    form: Any = structure_settings(
        registry.find("formats", choice.name), choice.settings, where=f"format {choice.name}"
    )
    return form  # type: ignore[no-any-return]


def _patterns(value: Any) -> list[str]:
    found = [value] if isinstance(value, str) else value or ()
    if not isinstance(found, (list, tuple, set, frozenset)) or not all(isinstance(one, str) for one in found):
        raise ArgumentError(f"ignore must be names, 're:' patterns or class names, got {value!r}")
    return list(found)


def _workers(value: int | str | None) -> int:
    if value is None or value == "auto":
        return workers_by_default()
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        near = suggest(value, ["auto"]) if isinstance(value, str) else ""
        raise ArgumentError(f"max_workers must be a number of at least 1, or 'auto', got {value!r}{near}")
    return value
