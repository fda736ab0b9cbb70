"""`coldpress compress`: one model, one recipe or scheme, one checkpoint."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coldpress.arguments import DEFAULT_ALGORITHM, DEFAULT_DATASET, DEFAULT_FORMAT, parse_arguments
from coldpress.arguments.checks import path
from coldpress.cli.console import say
from coldpress.cli.data_option import (
    DATA,
    PANEL,
    AllExperts,
    ChatTemplate,
    ChatTemplateKwargs,
    ColumnMap,
    Concatenate,
    DataCollator,
    DatasetConfigName,
    DatasetPath,
    Datasets,
    FewTokens,
    MaxSeqLength,
    MinTokens,
    PadToMaxLength,
    RawKwargs,
    Shuffle,
    Splits,
    Streaming,
    TextColumn,
    UseLossMask,
    as_arguments,
)
from coldpress.cli.model_free import run_model_free
from coldpress.cli.option import DTYPE, SEED, Device, Dtype, Json, Quiet, Seed, TrustRemoteCode, option
from coldpress.errors import ArgumentError, SchemeError, UnknownPluginError

if TYPE_CHECKING:
    from coldpress.recipe import Recipe

_WHAT, _OUTPUT = "What to do", "Output"
_DIVIDING = re.compile(r"; ([\d, ]+) would divide it")  # the end of what schemes.check_fit says

_GROUP_SIZE = re.compile(r"\bgroup_size:(?:\s*\$\{(?P<name>\w+)\})?")
_BARE, _FEW_BYTES = re.compile(r"\d+(\.\d+)?"), 1e6  # a size without a unit, and no checkpoint of a model
_CHOSEN = ("recipe", "scheme", "algorithm", "bits", "size", "quality", "group_size", "ignore")
_RENAMED = {
    **{"dtype": "precision", "recipe_arg": "recipe_args", "output": "output_dir"},
    "trust_remote_code": "trust_remote_code_model",
}
_SERVED_GROUP_SIZES = (128, 64, 32)  # kernels of serving engines know these; larger groups need less room for scales


def compress(
    model: Annotated[
        str, typer.Argument(help="A folder, a hub id, or a file or name that a source reads.", show_default=False)
    ],
    *,
    recipe: Annotated[Path | None, option(_WHAT, "--recipe/-r", "FILE", "A file, or a name: see recipes.")] = None,
    scheme: Annotated[
        str | None, option(_WHAT, "--scheme/-s", "NAME", "Instead of a recipe: W4A16, W8A8, FP8_DYNAMIC, ...")
    ] = None,
    algorithm: Annotated[
        str | None,
        option(
            _WHAT, "--algorithm/-a", "NAME", "How weights get there: rtn, gptq, awq, ...", shown="what suits the scheme"
        ),
    ] = None,
    bits: Annotated[
        float | None, option(_WHAT, "--bits", "N", "Instead of a scheme: bits a weight on average, where they count.")
    ] = None,
    size: Annotated[
        str | None, option(_WHAT, "--size", "SIZE", "Instead of a scheme: of the whole checkpoint, such as 3GB.")
    ] = None,
    quality: Annotated[
        str | None, option(_WHAT, "--quality", "NAME", "Instead of an algorithm: fast, balanced or best.")
    ] = None,
    group_size: Annotated[
        int | None, option(_WHAT, "--group-size", "N", "Columns that share a scale; -1 for one scale a row.")
    ] = None,
    ignore: Annotated[
        list[str] | None,
        option(
            _WHAT,
            "--ignore",
            "LAYER",
            "Name, re:pattern or class to leave alone; repeatable.",
            shown="lm_head, routers",
        ),
    ] = None,
    recipe_arg: Annotated[
        list[str] | None, option(_WHAT, "--recipe-arg", "NAME=VALUE", "Fill ${name} in the recipe; repeatable.")
    ] = None,
    stage: Annotated[str | None, option(_WHAT, "--stage", "NAME", "Only these stages of the recipe.")] = None,
    pipeline: Annotated[
        str | None, option(_WHAT, "--pipeline", "NAME", "Calibration pipeline.", shown="what the recipe needs")
    ] = None,
    dataset: Datasets = [DEFAULT_DATASET],  # noqa: B006  # typer copies it
    dataset_config_name: DatasetConfigName = DATA.dataset_config_name,
    dataset_path: DatasetPath = DATA.dataset_path,
    splits: Splits = DATA.splits,
    num_calibration_samples: Annotated[
        int | None, option(PANEL, "--num-calibration-samples", "N", "Samples that are used.", least=1)
    ] = DATA.num_calibration_samples,
    shuffle_calibration_samples: Shuffle = DATA.shuffle_calibration_samples,
    max_seq_length: MaxSeqLength = DATA.max_seq_length,
    batch_size: Annotated[
        int | None, option(PANEL, "--batch-size", "N", "Samples a batch.", shown="neighbours of one length", least=1)
    ] = DATA.batch_size,
    text_column: TextColumn = DATA.text_column,
    column_map: ColumnMap = None,
    chat_template: ChatTemplate = DATA.chat_template,
    chat_template_kwargs: ChatTemplateKwargs = None,
    concatenate_data: Concatenate = DATA.concatenate_data,
    data_collator: DataCollator = DATA.data_collator,
    pad_to_max_length: PadToMaxLength = DATA.pad_to_max_length,
    use_loss_mask: UseLossMask = DATA.use_loss_mask,
    moe_calibrate_all_experts: AllExperts = DATA.moe_calibrate_all_experts,
    moe_min_tokens: MinTokens = DATA.moe_min_tokens,
    moe_few_tokens: FewTokens = DATA.moe_few_tokens,
    streaming: Streaming = DATA.streaming,
    raw_kwargs: RawKwargs = None,
    output: Annotated[Path, option(_OUTPUT, "--output/-o", "DIR", "The checkpoint to write.")],
    format: Annotated[
        list[str] | None,
        option(_OUTPUT, "--format", "NAME", "Format of the checkpoint; repeatable.", shown=DEFAULT_FORMAT),
    ] = None,
    model_free: Annotated[
        bool,
        option(_WHAT, "--model-free", None, "Shard by shard, without building the model; for what reads no data."),
    ] = False,
    max_workers: Annotated[
        int | None,
        option(_WHAT, "--max-workers", "N", "With --model-free: at the same time.", shown="one a core", least=1),
    ] = None,
    check_tensors: Annotated[
        bool, option(None, "--check-tensors", None, "Look for NaN and infinity in every tensor before the first stage.")
    ] = False,
    overwrite: Annotated[bool, option(_OUTPUT, "--overwrite", None, "Replace DIR if it exists.")] = False,
    restart: Annotated[
        bool, option(_OUTPUT, "--restart", None, "Discard what an interrupted run left; else go on with it.")
    ] = False,
    log_dir: Annotated[Path | None, option(_OUTPUT, "--log-dir", "DIR", "Also log to a file in this folder.")] = None,
    dtype: Dtype = DTYPE,
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
    seed: Seed = SEED,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compress a model by a recipe, or by the names of a scheme and an algorithm, and write a checkpoint.

    coldpress compress smollm2 --scheme W4A16 --group-size 64 --output smollm2-w4a16
    """
    options = {name: value for name, value in locals().items() if name != "as_json"}
    settings = settings_of(**options)
    if model_free:
        run_model_free(settings, max_workers=max_workers, quiet=quiet, as_json=as_json)
    else:
        _run(settings, quiet=quiet, as_json=as_json)


def settings_of(*, model_free: bool = False, max_workers: int | None = None, **options: Any) -> dict[str, Any]:
    """The arguments of `oneshot` that the options of the command mean.

    Raises:
        ArgumentError: options contradict each other.
    """
    given = as_arguments(options)
    if not model_free and max_workers is not None:
        raise ArgumentError("--max-workers goes with --model-free")
    if model_free and given["scheme"] is not None and given["algorithm"] is None and given["quality"] is None:
        given["algorithm"] = DEFAULT_ALGORITHM
        if not given.get("quiet"):
            say("algorithm", f"{DEFAULT_ALGORITHM}: without the model nothing runs, so no data are read", style="cyan")
    chosen = {name: given.pop(name, None) for name in _CHOSEN}
    rest = {name: given[name] for name in ("recipe_arg", "stage")}
    _check_combination(**chosen, **rest)
    recipe = chosen.pop("recipe") or _recipe_of(**chosen, model=given["model"], quiet=bool(given.get("quiet")))
    renamed = {_RENAMED.get(name, name): value for name, value in given.items()}
    several = {name: renamed.get(name) or None for name in ("recipe_args", "format")}
    return {**renamed, **several, "recipe": recipe, "return_model": False}


def _check_combination(recipe: Path | None, **rest: Any) -> None:
    """Refuse options that contradict each other.

    Raises:
        ArgumentError: names the options.
    """
    ways = {"--recipe": recipe, "--scheme": rest["scheme"], "--bits": rest["bits"], "--size": rest["size"]}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        both = f", not {' and '.join(given)}" if given else ""
        raise ArgumentError(f"give one of --recipe FILE, --scheme NAME, --bits N and --size SIZE{both}")
    if rest["size"] is not None and _BARE.fullmatch(rest["size"]) and float(rest["size"]) < _FEW_BYTES:
        raise ArgumentError(f"--size {rest['size']} means bytes: write a unit, such as {rest['size']}GB")
    for_scheme = {"--quality": rest["quality"], "--group-size": rest["group_size"], "--ignore": rest["ignore"]}
    for_recipe = {"--recipe-arg": rest["recipe_arg"], "--stage": rest["stage"]}
    for name, value in {**(for_scheme if recipe else for_recipe), "--algorithm": rest["algorithm"]}.items():
        fits = name == "--algorithm" and rest["scheme"] is not None
        if value not in (None, []) and not fits:
            whole = "--scheme; a recipe says this itself" if recipe else "--recipe"
            raise ArgumentError(f"{name} goes with {'--scheme' if name == '--algorithm' and not recipe else whole}")
    if rest["quality"] is not None and rest["algorithm"] is not None:
        raise ArgumentError("give either --algorithm or --quality, which chooses one")


def _recipe_of(
    *, scheme: str | None, bits: float | None, size: str | None, quality: str | None, quiet: bool, **chosen: Any
) -> "Recipe":
    """The recipe for a scheme by name, or for a size; the first line says which algorithm it is, if none was named."""
    from coldpress.entrypoints.scheme_recipe import quality_named, recipe_for, recipe_for_size
    from coldpress.registry import names

    if scheme is None:
        return recipe_for_size(
            bits, size, quality=quality, group_size=chosen["group_size"], ignore=chosen["ignore"]
        ).recipe
    if quality is not None:
        chosen["algorithm"] = quality_named(quality)[0]
    try:
        found = recipe_for(scheme, **chosen)
    except UnknownPluginError as error:
        if DEFAULT_ALGORITHM in names("recipes"):
            raise
        raise UnknownPluginError(f"{error}; rounding needs: pip install 'coldpress[quantization]'") from error
    if found.why is not None and not quiet:
        say("algorithm", found.why, style="cyan")
    return found.recipe


def _run(settings: Mapping[str, Any], *, quiet: bool, as_json: bool) -> None:
    """Compress, and say what came of it."""
    from coldpress.entrypoints.oneshot import run
    from coldpress.report.memory import peak_memory, reset_peak_memory

    arguments = parse_arguments(settings)
    reset_peak_memory()
    start = perf_counter()
    with advised(settings["recipe"]):
        state = run(arguments)
    seconds = perf_counter() - start
    output = Path(path(settings["output_dir"]))
    if not state.share.ranks.leads:
        return
    from coldpress.cli.outcome import print_outcome

    print_outcome("compress", state, output, quiet=quiet, as_json=as_json, seconds=seconds, memory=peak_memory())


@contextmanager
def advised(recipe: Any) -> Iterator[None]:
    """Add to a message about groups which option would do, or what to change in the recipe."""
    try:
        yield
    except SchemeError as error:
        size = _fitting_size(str(error))
        raise SchemeError(str(error) + ("" if size is None else f"\n{_change(recipe, size)}")) from error


def _change(recipe: Any, size: int) -> str:
    """What to type or write so that groups have a size: an option, or a line of a recipe that was given."""
    if not isinstance(recipe, Path):
        return f"pass --group-size {size}" + (", one scale a row" if size == -1 else "")
    from coldpress.recipe import ready_recipe

    text = recipe.expanduser().read_text(encoding="utf-8") if recipe.is_file() else ready_recipe(str(recipe)).text
    lines = [(number, found) for number, line in enumerate(text.splitlines(), 1) if (found := _GROUP_SIZE.search(line))]
    placeholder = next((found["name"] for _, found in lines if found["name"]), None)
    if placeholder is not None:
        return f"pass --recipe-arg {placeholder}={size}"
    if lines:
        return f"set group_size: {size} in {recipe}:{lines[0][0]}"
    return f"set group_size: {size} beside the scheme in {recipe}"


def _fitting_size(message: str) -> int | None:
    """Which group size would do, if that is what a message is about."""
    offers = [{int(size) for size in found.split(",")} for found in _DIVIDING.findall(message)]
    fitting = set.intersection(*offers) if offers else set()
    if fitting:
        served = [size for size in _SERVED_GROUP_SIZES if size in fitting]
        return served[0] if served else max(fitting)
    return -1 if "group_size" in message and "would do" in message else None
