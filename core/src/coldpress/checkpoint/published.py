"""A folder that a format published: which format it was, and the tensors in its container."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coldpress import registry
from coldpress.checkpoint.config import quantization_in
from coldpress.checkpoint.reader import CheckpointReader, read_json
from coldpress.errors import BrokenPluginError, CheckpointError, UnknownPluginError
from coldpress.format import Format
from coldpress.source import Weights


def quantization_of(folder: Path) -> Mapping[str, Any]:
    """What a folder's config.json says of how weights are stored; empty where it says nothing, or cannot be read."""
    try:
        return quantization_in(read_json(folder / "config.json"))
    except CheckpointError:
        return {}


def format_of(quantization: Mapping[str, Any]) -> Format | None:
    """The installed format of a `quantization_config`; None where none of its `quant_method` is installed."""
    method = quantization.get("quant_method")
    if not isinstance(method, str):
        return None
    try:
        form = registry.find("formats", method)()
    except UnknownPluginError:
        return None
    if not isinstance(form, Format):
        raise BrokenPluginError(f"the format {method!r} is not a coldpress.Format")
    return form


def open_folder(folder: Path, form: Format | None) -> Weights:
    """The tensors of a folder, as the format that wrote it named and shaped them; every header is checked.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    opened = form.open(folder) if form is not None else None
    if opened is not None:
        return opened
    reader = CheckpointReader(folder)
    reader.check()
    return reader
