"""Opening a model: into memory, or as a stream of weights where that is possible."""

import logging
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from attrs import evolve, field, fields_dict, frozen

from coldpress.arguments import Arguments, ModelArguments
from coldpress.checkpoint.companion import Origin
from coldpress.checkpoint.config import quantization_in
from coldpress.checkpoint.pickled import open_files, pickled_files
from coldpress.checkpoint.place import Found, find_places
from coldpress.checkpoint.reader import read_json
from coldpress.checkpoint.stored import stored_otherwise
from coldpress.errors import ArgumentError, ModelError
from coldpress.layer_report import LayerReport
from coldpress.models import load_model
from coldpress.models.compressed import empty_compressed
from coldpress.models.configuration import load_config
from coldpress.models.dense import DenseCheckpoint, folder_checkpoint, source_checkpoint
from coldpress.models.hub import hub_folder, on_this_disk
from coldpress.models.loading import placement
from coldpress.models.location import Location, locate
from coldpress.models.origin import origin_folder
from coldpress.models.skeleton import NotStreamable, stream_model
from coldpress.models.streaming import WeightStream
from coldpress.source import Source, Weights
from coldpress.state import State

log = logging.getLogger(__name__)


@frozen(eq=False)
class Opened:
    """A model that is about to be compressed.

    Attributes:
        model: in memory, or built without weights.
        weights: brings them, stage by stage; None when they are in memory.
        origin: the folder that the model is in, as far as that is known; None when it comes from somewhere else.
        extra: tensors of its files that the model has no place for, with their shapes.
    """

    model: Any
    weights: WeightStream | None
    origin: Origin | None
    extra: Mapping[str, tuple[int, ...]] = field(factory=dict)


def open_model(arguments: Arguments) -> Opened:
    """The model that the arguments name.

    Raises:
        ColdpressError: there is no such model, it is damaged, it shall be streamed and cannot be, or an argument says
            how to read a model of another kind.
    """
    settings = arguments.model
    found = locate(settings.model) if isinstance(settings.model, str) else None
    _check_kind(settings, found)
    found = None if found is None else on_this_disk(found, settings.model_revision)
    wanted, reason = settings.stream_weights, _obstacle(arguments, found)
    if wanted and reason:
        raise ArgumentError(f"stream_weights=True is not possible: {reason}")
    if wanted is not False and not reason:
        assert found is not None
        try:
            weights = _stream(settings, found)
        except NotStreamable as error:
            level = logging.WARNING if wanted else logging.INFO
            log.log(level, "%s is loaded into memory as a whole: %s", found.name, error)
        else:
            there = Found(weights.places, weights.extra)
            return _opened(weights.model, found, there, weights.reader, settings, stream=weights)
    model = load_model(
        settings.model,
        dtype=settings.precision,
        device=settings.device,
        trust_remote_code=settings.trust_remote_code_model,
        revision=settings.model_revision,
        config=settings.config_name,
    )
    if found is None:
        folder = origin_folder(model)
        found = None if folder is None else Location(str(folder), folder)
    if found is None:
        return Opened(model, None, None)
    reader = None if found.source is not None else _reader_of(model, found.path)
    there = Found({}, ()) if reader is None else find_places(model, reader)
    return _opened(model, found, there, reader, settings)


def open_empty(arguments: Arguments) -> Opened:
    """The model that the arguments name, without its weights; one that is in memory as it is.

    Raises:
        ColdpressError: as `open_model`, or only its weights tell what the model is.
    """
    settings = arguments.model
    found = locate(settings.model) if isinstance(settings.model, str) else None
    if found is None:
        return open_model(arguments)
    _check_kind(settings, found)
    folder = found if found.path is not None else evolve(found, path=hub_folder(found.name, settings.model_revision))
    assert folder.path is not None
    if folder.source is None and is_compressed(folder.path):
        return _opened(_empty_compressed(settings, folder.path), folder, Found({}, ()), None, settings)
    try:
        weights = _stream(settings, folder)
    except NotStreamable as error:
        raise ModelError(
            f"{folder.name!r} cannot be planned without its weights ({error}): load it, and plan with the model in "
            "memory"
        ) from error
    return _opened(weights.model, folder, Found(weights.places, weights.extra), weights.reader, settings, weights)


def _empty_compressed(settings: ModelArguments, folder: Path) -> Any:
    trust, name = settings.trust_remote_code_model, settings.config_name
    dtype, _ = placement(settings.precision, settings.device)
    config = None if name is None else load_config(name, trust_remote_code=trust)
    quantization = quantization_in(read_json(folder / "config.json"))
    return empty_compressed(folder, quantization, dtype=dtype, trust_remote_code=trust, config=config)


def _opened(
    model: Any,
    location: Location,
    found: Found,
    files: Weights | None,
    settings: ModelArguments,
    stream: WeightStream | None = None,
) -> Opened:
    """A model of which is known where its tensors are in its files.

    Raises:
        CheckpointError: its files hold something else than weights where it has weights.
    """
    extra = {} if files is None else {name: files.shape(name) for name in found.extra}
    stored = {} if files is None else stored_otherwise(model, found.places, files)
    origin = None
    if location.path is not None and location.path.is_dir():
        source = location.source
        origin = Origin(
            location.path,
            has_tokenizer=source is None or source.tokenizer is Source.tokenizer,
            extra=found.extra,
            stored=stored if settings.precision == "auto" else {},
            weights=files if stream is not None else None,
            left_out=frozenset() if source is None else source.own_files,
        )
    return Opened(model, stream, origin, extra)


def _reader_of(model: Any, folder: Path | None) -> Weights | None:
    """The files of a folder that a model was read from as a whole, and as it is there; None where it was not."""
    if folder is None or not _has_weights(folder) or is_compressed(folder):
        return None
    return open_files(folder) if _is_whole(model, read_json(folder / "config.json")) else None


def report_extra(state: State, extra: Mapping[str, tuple[int, ...]]) -> None:
    """Say of tensors that the model has no place for that they come along: in the report, and in a warning."""
    for name, shape in extra.items():
        rows = shape[0] if shape else 1
        reason = "no part of the model: copied from its files unchanged"
        state.report[name] = LayerReport(name, "Tensor", (rows, prod(shape) // max(rows, 1)), reason=reason)
    if extra:
        log.warning(
            "%d tensors of the files are no part of a %s, the first is %s (multi-token prediction, or of another "
            "class?): they come along unchanged",
            *(len(extra), type(state.model).__name__, next(iter(extra))),
        )


def _stream(settings: ModelArguments, found: Location) -> WeightStream:
    assert found.path is not None
    trust, name = settings.trust_remote_code_model, settings.config_name
    config = None if name is None else load_config(name, trust_remote_code=trust)
    checkpoint: DenseCheckpoint | None
    if found.source is None:
        checkpoint = folder_checkpoint(found.name, found.path, config=config, trust_remote_code=trust)
    else:
        checkpoint = source_checkpoint(found, found.open(), config=config, trust_remote_code=trust)
    if checkpoint is None:
        raise NotStreamable("its source builds it as a whole")
    dtype, device = placement(settings.precision, settings.device)
    return stream_model(checkpoint, dtype=dtype, device=device, trust_remote_code=trust)


def _check_kind(settings: ModelArguments, found: Location | None) -> None:
    """Refuse arguments that cannot act on a model of this kind.

    Raises:
        ArgumentError: names the argument, and says what to do instead.
    """
    if found is not None:
        if found.path and settings.model_revision != fields_dict(ModelArguments)["model_revision"].default:
            raise ArgumentError(
                f"model_revision={settings.model_revision!r} names a version on the hub, and {found.name!r} is not "
                "there"
            )
        return
    if settings.config_name is not None:
        raise ArgumentError(
            f"config_name={settings.config_name!r} says how to build a model, and this one is in memory already: "
            "change model.config, or pass the folder that the model is in"
        )
    dtype, _ = placement(settings.precision, None)
    if dtype not in ("auto", getattr(settings.model, "dtype", dtype)):
        raise ArgumentError(
            f"precision={settings.precision!r} says how to read a model, and this one is in memory already, in "
            f"{settings.model.dtype}: load it in {dtype}, or call model.to({dtype})"
        )


def _obstacle(arguments: Arguments, found: Location | None) -> str | None:
    """Why weights cannot be read stage by stage, as far as it can be known without opening the model."""
    if arguments.output.output_dir is None:
        return "there is no output_dir that finished stages could be written to"
    if found is None or found.path is None:
        return "the model is neither a folder of safetensors files nor on a hub"
    if found.source is not None:
        return None
    if not _has_weights(found.path):
        return f"{found.path} holds no safetensors files"
    if is_compressed(found.path):
        return f"{found.path} is compressed already, and is decoded as a whole"
    return None


def _has_weights(folder: Path) -> bool:
    return next(folder.glob("*.safetensors"), None) is not None or bool(pickled_files(folder))


def is_compressed(folder: Path) -> bool:
    """Whether a folder's config.json says that its weights are quantized."""
    return bool(quantization_in(read_json(folder / "config.json")))


def _is_whole(model: Any, stored: Mapping[str, Any]) -> bool:
    """Whether a model is of the class that the config.json of its folder names, and has as many layers."""
    named = stored.get("architectures") or [type(model).__name__]
    theirs = type(model.config).from_dict(dict(stored)).get_text_config()
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    return type(model).__name__ in named and count == getattr(theirs, "num_hidden_layers", None)
