"""What `oneshot` and the command line may be told: names and defaults that llm-compressor's users know.

Imports neither torch nor transformers, because the command line reads this file to answer `--help`.
Every default that differs from llm-compressor's says so, with the reason, in its class's docstring.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from attrs import Attribute, field, fields, fields_dict, frozen

from coldpress.errors import ArgumentError, suggest

log = logging.getLogger(__name__)

# The only plugin names that core holds: a default must be a name that somebody may override, and these are the
# ones that the distributions beside core offer.  Core looks them up like any other name and never imports them.
DEFAULT_PIPELINE = "data_free"  # when no modifier of the recipe reads data
DEFAULT_CALIBRATION_PIPELINE = "sequential"  # when one does
DEFAULT_FORMAT = "compressed-tensors"
DENSE_FORMAT = "dense"  # what save_compressed=False asks for
DEFAULT_WEIGHT_OBSERVER = "memoryless_minmax"
DEFAULT_ACTIVATION_OBSERVER = "minmax"
DEFAULT_DATASET = "coldpress/short"  # what the demo calibrates with, and errors propose
DEFAULT_QUANTIZER = "QuantizationModifier"  # what a scheme by name, without a recipe, is applied with

PRECISIONS = ("auto", "bfloat16", "float16", "half", "float32", "full")
DATA_COLLATORS = ("truncation", "padding")

# Arguments that say which data are read and how they become batches; `warn_idle` where no data are read.
DATA_SOURCE = ("dataset_config_name", "dataset_path", "splits", "raw_kwargs", "streaming")
DATA_PREPARATION = (
    "batch_size",
    "data_collator",
    "num_calibration_samples",
    "shuffle_calibration_samples",
    "max_seq_length",
    "pad_to_max_length",
    "text_column",
    "preprocessing_func",
    "concatenate_data",
)

# Arguments that are settings of a pipeline; one that has no such setting is said to ignore it.
PIPELINE_SETTINGS = ("sequential_targets", "propagate_error", "true_sequential", "offload_activations", "offload_limit")
OFFLOAD_PLACES = ("cpu", "disk")

_READERS = ("csv", "custom", "json", "jsonl", "parquet", "text", "txt")  # llm-compressor's data sets of files
_PEER_PIPELINES = {"datafree": "data_free"}  # llm-compressor's spelling -> ours

# Accepted so that a script written for llm-compressor runs; each is said to do nothing when it is set.
WITHOUT_EFFECT: dict[str, str] = {
    "clear_sparse_session": "there is no global session to clear",
    "dataloader_num_workers": "batches are made once, before the run, and stay in memory",
    "dvc_data_repository": "DVC is not read; fetch the file and pass its path as dataset",
    "min_tokens_per_module": "it counts nothing, neither here nor in llm-compressor",
    "overwrite_cache": "nothing that is derived from a data set is cached",
    "preprocessing_num_workers": "calibration samples are few and the tokenizer has its own threads",
    "quantization_aware_calibration": "deprecated in llm-compressor, where it does nothing either",
    "remove_columns": "only token columns are ever kept",
    "sequential_offload_device": "what waits is in CPU memory, or on disk: see offload_activations",
    "sequential_prefetch": "no installed pipeline reads ahead",
    "sequential_targets_per_subgraph": "no installed pipeline cuts the model into parts",
    "tracing_ignore": "nothing is traced: it is the model's own forward that runs",
    "use_loss_mask": "no installed modifier reads a loss mask",
}


def _is(*kinds: type, optional: bool = False) -> Callable[[Any, "Attribute[Any]", Any], None]:
    """A validator: the value is of one of these types; a bool is not a number."""

    def check(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
        if value is None and optional:
            return
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join("text" if kind is str else kind.__name__ for kind in kinds)
            raise ArgumentError(f"{attribute.name} must be {wanted}{' or None' if optional else ''}, got {value!r}")

    return check


def _at_least(least: int, *, optional: bool = False) -> Callable[[Any, "Attribute[Any]", Any], None]:
    """A validator: a whole number that is not less than `least`, and that 63 bits hold."""

    def check(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
        if value is None and optional:
            return
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
            none = " or None" if optional else ""
            most = " and below 2**63" if isinstance(value, int) and value > least else ""
            raise ArgumentError(
                f"{attribute.name} must be a whole number of at least {least}{most}{none}, got {value!r}"
            )

    return check


def _one_of(choices: tuple[str, ...], *, or_callable: bool = False) -> Callable[[Any, "Attribute[Any]", Any], None]:
    """A validator: one of these words."""

    def check(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
        if value in choices or (or_callable and callable(value)):
            return
        more = " or a function" if or_callable else ""
        raise ArgumentError(
            f"{attribute.name} must be one of {', '.join(choices)}{more}, got {value!r}{suggest(str(value), choices)}"
        )

    return check


def _plain(name: Any) -> Any:
    """`torch.bfloat16` as its plain name; anything else as it is."""
    return str(name).removeprefix("torch.") if str(name).startswith("torch.") else name


def _path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _device_name(device: Any) -> str | None:
    return None if device is None else str(device)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else list(value) if isinstance(value, tuple) else value


def _pipeline_name(name: Any) -> Any:
    return _PEER_PIPELINES.get(name, name) if isinstance(name, str) else name


@frozen(kw_only=True, eq=False)
class ModelArguments:
    """Which model, and how it is read; what cannot act on a model of its kind is refused.

    Attributes:
        model: a folder, a `.gguf` file, a hub id, `smollm2`, or a model that is already in memory.
        config_name: folder, JSON file or hub id of the configuration to build the model with, instead of its own.
        tokenizer: a tokenizer, or where to find one; by default beside the model.  Not together with `processor`.
        processor: llm-compressor's other name of `tokenizer`.
        precision: dtype to read the weights in: auto (as stored), bfloat16, float16 (half), float32 (full).
        tie_word_embeddings: False gives the head weights of its own, where it shares the embedding's.
        trust_remote_code_model: run Python code that comes with the model or its tokenizer.
        save_compressed: False writes the compressed model's weights in their dense form.
        model_revision: branch, tag or commit of a model on the hub, and of the tokenizer beside it.
        device: where the model is put; None takes an accelerator if there is one, and leaves a model in memory alone.
        stream_weights: read the weights of a stage when its turn comes and free them when it is written, so that the
            model need not fit into memory; None does so whenever the model is a folder of safetensors files and
            there is an `output_dir`.
    """

    model: Any = field(converter=_path)
    config_name: str | None = field(default=None, converter=_path, validator=_is(str, optional=True))
    tokenizer: Any = field(default=None, converter=_path)
    processor: Any = field(default=None, converter=_path)
    precision: str = field(default="auto", converter=_plain, validator=_one_of(PRECISIONS))
    tie_word_embeddings: bool = field(default=True, validator=_is(bool))
    trust_remote_code_model: bool = field(default=False, validator=_is(bool))
    save_compressed: bool = field(default=True, validator=_is(bool))
    model_revision: str = field(default="main", validator=_is(str))
    device: str | None = field(default=None, converter=_device_name, validator=_is(str, optional=True))
    stream_weights: bool | None = field(default=None, validator=_is(bool, optional=True))

    @model.validator
    def _check_model(self, _: "Attribute[Any]", model: Any) -> None:
        if model is None or model == "":
            raise ArgumentError("model is missing: pass a folder, a .gguf file, a hub id, 'smollm2' or a loaded model")

    @tokenizer.validator
    @processor.validator
    def _check_tokenizer(self, attribute: "Attribute[Any]", value: Any) -> None:
        if value is not None and not isinstance(value, str) and not callable(getattr(value, "save_pretrained", None)):
            raise ArgumentError(f"{attribute.name} must be a path, a name on the hub or a tokenizer, got {value!r}")
        if self.tokenizer is not None and self.processor is not None:
            raise ArgumentError("tokenizer and processor are two names of one argument: pass one of them")


@frozen(kw_only=True, eq=False)
class RecipeArguments:
    """What is done to the model.

    Attributes:
        recipe: a modifier, a list of them, a `Recipe`, a YAML or JSON file, or YAML text.
        recipe_args: values of the recipe's `${name}` placeholders, as a dict or as `["name=value", ...]`.
            (In llm-compressor they are stored and never used.)
        clear_sparse_session: no effect.
        stage: only the stages of the recipe whose name begins so.
        seed: of everything that is drawn at random; the same seed gives the same bytes.
    """

    recipe: Any = None
    recipe_args: dict[str, Any] | list[str] | None = field(
        default=None, validator=_is(dict, list, tuple, optional=True)
    )
    clear_sparse_session: bool = field(default=False, validator=_is(bool))
    stage: str | None = field(default=None, validator=_is(str, optional=True))
    seed: int = field(default=0, validator=_at_least(0))


@frozen(kw_only=True, eq=False)
class DatasetArguments:
    """What the model is calibrated with, and how it is swept.

    Two defaults differ from llm-compressor's.
    `pipeline` is None instead of "independent": all modifiers of a recipe share one sweep over the data, which gives
    the same statistics for less work, and a recipe that reads no data makes no sweep.
    `preprocessing_func` is a function, never "file.py:name": an argument does not run a file.

    Attributes:
        dataset: a name, a file or folder (json, jsonl, csv, txt, parquet), a hub id, a `Dataset` or `DatasetDict`,
            a list of texts or of rows, or a `DataLoader`, whose batches are taken as they are.
        dataset_config_name: configuration of a data set on the hub.
        dataset_path: file or folder to read; the same as giving it as `dataset`, which may then name the kind of file
            ("json", "csv", "custom", ...), as in llm-compressor.
        dvc_data_repository: no effect.
        splits: the split to use, such as "train" or "train[:10%]"; a list (its first) or {"calibration": ...}.
        batch_size: samples per batch; None puts neighbours of one length together, up to 2048 tokens, which is faster,
            or keeps samples apart where the outcome would depend on it (averages of ranges of static inputs).
        data_collator: samples of a batch are cut to the shortest ("truncation"), padded to the longest ("padding"),
            or joined by a function from a list of rows to a batch.
        num_calibration_samples: how many samples are used; None uses all.
        shuffle_calibration_samples: draw them at random (see `seed`), else take the first ones.
        max_seq_length: tokens per sample at most; None cuts where the tokenizer says that the model ends.
        pad_to_max_length: pad every sample to `max_seq_length`.
        text_column: the column that holds the text.
        remove_columns: no effect.
        preprocessing_func: a function from row to row, applied before the tokenizer.
        raw_kwargs: more arguments of `datasets.load_dataset`.
        concatenate_data: join the texts and cut the join into samples of `max_seq_length` tokens.
        streaming: read a data set of the hub as it comes instead of fetching it whole.
        overwrite_cache: no effect.
        preprocessing_num_workers: no effect.
        dataloader_num_workers: no effect.
        min_tokens_per_module: no effect.
        moe_calibrate_all_experts: show every expert every token while it is calibrated; False shows it those that the
            router sends it.  What the model says is the same.
        pipeline: name of the pipeline; None takes what the recipe needs.
        tracing_ignore: no effect.
        sequential_targets: what a block is, for pipelines that go block by block: names, `re:` patterns, classes.
        offload_activations: where activations wait between two stages: "cpu", in memory, or "disk", in files beyond
            the limit.  No byte of the result depends on it.
        offload_limit: bytes of activations that "disk" leaves in memory.
        sequential_offload_device: no effect; see `offload_activations`.
        sequential_targets_per_subgraph: no effect yet.
        quantization_aware_calibration: no effect.
        propagate_error: whether later blocks see what compressed ones put out; None: where a modifier makes use of it.
        true_sequential: whether layers of a block see what the compressed ones before them in it put out, which takes
            one run through the block and not two, and memory; None: on the CPU, where activations are few.
        use_loss_mask: no effect yet.
        sequential_prefetch: no effect.
    """

    dataset: Any = field(default=None, converter=_path)
    dataset_config_name: str | None = field(default=None, validator=_is(str, optional=True))
    dataset_path: str | None = field(default=None, converter=_path, validator=_is(str, optional=True))
    dvc_data_repository: str | None = None
    splits: Any = field(default=None, validator=_is(str, list, tuple, Mapping, optional=True))
    batch_size: int | None = field(default=None, validator=_at_least(1, optional=True))
    data_collator: Any = field(default="truncation", validator=_one_of(DATA_COLLATORS, or_callable=True))
    num_calibration_samples: int | None = field(default=512, validator=_at_least(1, optional=True))
    shuffle_calibration_samples: bool = field(default=True, validator=_is(bool))
    max_seq_length: int | None = field(default=None, validator=_at_least(1, optional=True))
    pad_to_max_length: bool = field(default=False, validator=_is(bool))
    text_column: str = field(default="text", validator=_is(str))
    remove_columns: list[str] | None = None
    preprocessing_func: Callable[[dict[str, Any]], dict[str, Any]] | None = field(default=None)
    raw_kwargs: dict[str, Any] = field(factory=dict, validator=_is(dict))
    concatenate_data: bool = field(default=False, validator=_is(bool))
    streaming: bool = field(default=False, validator=_is(bool))
    overwrite_cache: bool = False
    preprocessing_num_workers: int | None = None
    dataloader_num_workers: int = 0
    min_tokens_per_module: float | None = None
    moe_calibrate_all_experts: bool = field(default=True, validator=_is(bool))
    pipeline: str | None = field(default=None, converter=_pipeline_name, validator=_is(str, optional=True))
    tracing_ignore: list[str] | None = None
    sequential_targets: Any = field(default=None, converter=_as_list, validator=_is(list, optional=True))
    offload_activations: str = field(default="cpu", validator=_one_of(OFFLOAD_PLACES))
    offload_limit: int = field(default=1 << 30, validator=_at_least(0))
    sequential_offload_device: str = "cpu"
    sequential_targets_per_subgraph: int = 1
    quantization_aware_calibration: bool = True
    propagate_error: bool | None = field(default=None, validator=_is(bool, optional=True))
    true_sequential: bool | None = field(default=None, validator=_is(bool, optional=True))
    use_loss_mask: bool = False
    sequential_prefetch: bool = False

    @preprocessing_func.validator
    def _check_preprocessing(self, _: "Attribute[Any]", function: Any) -> None:
        if function is not None and not callable(function):
            raise ArgumentError(f"preprocessing_func must be a function from row to row, got {function!r}")

    @dataset_path.validator
    def _check_path(self, _: "Attribute[Any]", path: str | None) -> None:
        if path is not None and self.dataset is not None and not isinstance(self.dataset, str):
            raise ArgumentError("dataset_path names a file, but dataset is data already: pass one of them")
        if path is not None and self.dataset not in (None, *_READERS):
            raise ArgumentError(
                f"dataset={self.dataset!r} and dataset_path={path!r} name two data sets: pass one of them"
            )


@frozen(kw_only=True, eq=False)
class OutputArguments:
    """Where the result goes.

    Attributes:
        output_dir: folder of the checkpoint; None writes nothing.
        log_dir: folder of a log file of the run; None writes none.
        overwrite: replace `output_dir` if it exists; otherwise that is an error, before any work is done.
        restart: discard what an interrupted run has left beside `output_dir`; otherwise it is gone on with.
        format: name of the checkpoint format; None is compressed-tensors.
        quantization_format: the form of the weights within the format, such as "pack-quantized"; None lets the
            format choose by scheme.
        return_model: return the compressed model; False returns None, and after a run that streams its weights saves
            the time and memory to load the result.
        quiet: no progress bars.
    """

    output_dir: str | None = field(default=None, converter=_path, validator=_is(str, optional=True))
    log_dir: str | None = field(default=None, converter=_path, validator=_is(str, optional=True))
    overwrite: bool = field(default=False, validator=_is(bool))
    restart: bool = field(default=False, validator=_is(bool))
    format: str | None = field(default=None, validator=_is(str, optional=True))
    quantization_format: str | None = field(default=None, validator=_is(str, optional=True))
    return_model: bool = field(default=True, validator=_is(bool))
    quiet: bool = field(default=False, validator=_is(bool))

    @overwrite.validator
    @restart.validator
    def _check_output(self, attribute: "Attribute[Any]", asked: bool) -> None:
        if asked and self.output_dir is None:
            raise ArgumentError(f"{attribute.name}=True goes with output_dir, which is missing")


class Arguments(NamedTuple):
    """All arguments of one run, by subject."""

    model: ModelArguments
    recipe: RecipeArguments
    dataset: DatasetArguments
    output: OutputArguments


def warn_idle(arguments: Any, names: Iterable[str], reason: str) -> None:
    """Log which of these arguments were set and cannot act on what they were given together with.

    Args:
        arguments: of one of the classes above.
        names: of some of its attributes.
        reason: why they cannot act.
    """
    known = fields_dict(type(arguments))
    for name in names:
        default: Any = known[name].default
        if getattr(arguments, name) != (default.factory() if hasattr(default, "factory") else default):
            log.warning("%s has no effect: %s", name, reason)


_CLASSES = (ModelArguments, RecipeArguments, DatasetArguments, OutputArguments)


def argument_names() -> list[str]:
    """Every name that `parse_arguments` knows, in the order of the classes."""
    return [attribute.name for cls in _CLASSES for attribute in fields(cls)]


def parse_arguments(arguments: Mapping[str, Any]) -> Arguments:
    """Sort named values into the classes above and check them.

    Arguments in `WITHOUT_EFFECT` that are set to something other than their default are logged as warnings.

    Raises:
        ArgumentError: an unknown name (all of them at once, each with a suggestion), a missing model, a bad value.
    """
    known = argument_names()
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise ArgumentError("\n".join(f"{name!r} is not an argument{suggest(name, known)}" for name in unknown))
    given = {"model": None, **arguments}
    parsed = Arguments(
        *(cls(**{a.name: given[a.name] for a in fields(cls) if a.name in given}) for cls in _CLASSES)  # type: ignore[arg-type]
    )
    for values in parsed:
        for name in fields_dict(type(values)):
            if name in WITHOUT_EFFECT:
                warn_idle(values, [name], WITHOUT_EFFECT[name])
    return parsed
