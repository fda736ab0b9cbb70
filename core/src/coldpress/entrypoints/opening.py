"""Opening a model: into memory, or as a stream of weights where that is possible."""

import logging
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from attrs import field, fields_dict, frozen

from coldpress.arguments import Arguments, ModelArguments
from coldpress.checkpoint import CheckpointReader
from coldpress.checkpoint.place import find_places
from coldpress.checkpoint.reader import read_json
from coldpress.errors import ArgumentError
from coldpress.layer_report import LayerReport
from coldpress.models import load_model
from coldpress.models.hub import hub_folder
from coldpress.models.loading import placement
from coldpress.models.origin import origin_folder
from coldpress.models.skeleton import NotStreamable, stream_model
from coldpress.models.source import find_source
from coldpress.models.streaming import WeightStream
from coldpress.state import State

log = logging.getLogger(__name__)


@frozen(eq=False)
class Opened:
    """A model that is about to be compressed.

    Attributes:
        model: in memory, or built without weights.
        weights: brings them, stage by stage; None when they are in memory.
        folder: where the model is on disk, as far as that is known; None when it comes from somewhere else.
        extra: tensors of its files that the model has no place for, with their shapes.
    """

    model: Any
    weights: WeightStream | None
    folder: Path | None
    extra: Mapping[str, tuple[int, ...]] = field(factory=dict)


def open_model(arguments: Arguments) -> Opened:
    """The model that the arguments name.

    Raises:
        ColdpressError: there is no such model, it is damaged, it shall be streamed and cannot be, or an argument says
            how to read a model of another kind.
    """
    settings = arguments.model
    _check_kind(settings)
    folder = _folder(settings)
    wanted = settings.stream_weights
    reason = _obstacle(arguments, folder)
    if wanted and reason:
        raise ArgumentError(f"stream_weights=True is not possible: {reason}")
    if wanted is not False and not reason:
        assert folder is not None
        try:
            weights = _stream(settings, folder)
        except NotStreamable as error:
            log.log(
                logging.WARNING if wanted else logging.INFO, "%s is loaded into memory as a whole: %s", folder, error
            )
        else:
            return Opened(weights.model, weights, folder, {name: weights.reader.shape(name) for name in weights.extra})
    model = load_model(
        settings.model,
        dtype=settings.precision,
        device=settings.device,
        trust_remote_code=settings.trust_remote_code_model,
        revision=settings.model_revision,
        config=settings.config_name,
    )
    folder = folder or origin_folder(model)
    return Opened(model, None, folder, _extra(model, folder))


def _extra(model: Any, folder: Path | None) -> Mapping[str, tuple[int, ...]]:
    """Tensors in the files of a folder that a model which was read from there, as it is there, has no place for."""
    if folder is None or next(folder.glob("*.safetensors"), None) is None or is_compressed(folder):
        return {}
    if not _is_whole(model, read_json(folder / "config.json")):
        return {}
    reader = CheckpointReader(folder)
    return {name: reader.shape(name) for name in find_places(model, reader).extra}


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


def _stream(settings: ModelArguments, folder: Path) -> WeightStream:
    dtype, device = placement(settings.precision, settings.device)
    return stream_model(
        folder,
        name=settings.model,
        dtype=dtype,
        device=device,
        trust_remote_code=settings.trust_remote_code_model,
        config=settings.config_name,
    )


def _check_kind(settings: ModelArguments) -> None:
    """Refuse arguments that cannot act on a model of this kind.

    Raises:
        ArgumentError: names the argument, and says what to do instead.
    """
    model = settings.model
    if isinstance(model, str):
        kind = find_source(model).kind
        if kind != "hub" and settings.model_revision != fields_dict(ModelArguments)["model_revision"].default:
            raise ArgumentError(
                f"model_revision={settings.model_revision!r} names a version on the hub, and {model!r} is not there"
            )
        return
    if settings.config_name is not None:
        raise ArgumentError(
            f"config_name={settings.config_name!r} says how to build a model, and this one is in memory already: "
            "change model.config, or pass the folder that the model is in"
        )
    dtype, _ = placement(settings.precision, None)
    if dtype not in ("auto", getattr(model, "dtype", dtype)):
        raise ArgumentError(
            f"precision={settings.precision!r} says how to read a model, and this one is in memory already, in "
            f"{model.dtype}: load it in {dtype}, or call model.to({dtype})"
        )


def _folder(settings: ModelArguments) -> Path | None:
    """The folder that a model is in, if it is named: its own, or that of its snapshot in the hub's cache."""
    if not isinstance(settings.model, str):
        return None
    source = find_source(settings.model)
    if source.kind == "hub":
        return hub_folder(source.name, settings.model_revision)
    return source.path if source.kind == "folder" else None


def _obstacle(arguments: Arguments, folder: Path | None) -> str | None:
    """Why weights cannot be read stage by stage, as far as it can be known without opening the model."""
    if arguments.output.output_dir is None:
        return "there is no output_dir that finished stages could be written to"
    if folder is None:
        return "the model is neither a folder of safetensors files nor on a hub"
    if next(folder.glob("*.safetensors"), None) is None:
        return f"{folder} holds no safetensors files"
    if is_compressed(folder):
        return f"{folder} is compressed already, and is decoded as a whole"
    return None


def is_compressed(folder: Path) -> bool:
    """Whether a folder's config.json says that its weights are quantized."""
    return bool(read_json(folder / "config.json").get("quantization_config"))


def _is_whole(model: Any, stored: Mapping[str, Any]) -> bool:
    """Whether a model is of the class that the config.json of its folder names, and has as many layers."""
    named = stored.get("architectures") or [type(model).__name__]
    theirs = type(model.config).from_dict(dict(stored)).get_text_config()
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    return type(model).__name__ in named and count == getattr(theirs, "num_hidden_layers", None)
