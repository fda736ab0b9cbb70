"""Whether what a run writes may lie where it is asked for, beside what the run reads; looked at before any work."""

import re
import shutil
from pathlib import Path
from typing import Any

from coldpress import registry
from coldpress.arguments import Arguments
from coldpress.checkpoint.destination import Destination, resolved
from coldpress.errors import ArgumentError, CheckpointError
from coldpress.format import Format
from coldpress.models.origin import origin_folder

_STATE = "trainer_state.json"  # which a Trainer writes into each of its checkpoints, after the weights


def checkpoints_in(folder: Path) -> list[Path]:
    """What a Trainer takes for its checkpoints, by their names, as it does."""
    return sorted(
        one for one in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", one.name) and one.is_dir()
    )


def check_deletable(folder: Path, *used: Any) -> None:
    """Refuse to delete checkpoints of which one is no Trainer's, or is needed.

    Args:
        folder: of the checkpoints.
        *used: models that the run reads, in memory or texts that name them; None is none.

    Raises:
        CheckpointError: names what is to be moved.
    """
    for one in checkpoints_in(folder):
        if one.is_symlink() or not (one / _STATE).is_file():
            raise CheckpointError(
                f"restart=True deletes the checkpoints in {folder}, and {one.name} is not known for one, as it has no "
                f"{_STATE}: move it, or delete it"
            )
        for model in used:
            if model is not None:
                check_apart(one, model)


def delete_checkpoints(folder: Path) -> None:
    """Delete what `check_deletable` was asked about, and nothing beside it."""
    for one in checkpoints_in(folder):
        if not one.is_symlink() and (one / _STATE).is_file():
            shutil.rmtree(one)


def check_log(arguments: Arguments) -> None:
    """Refuse a log inside of the output, before it is opened.

    Raises:
        ArgumentError: it would lie in a folder that appears only when the run is done.
    """
    output, log = arguments.output.output_dir, arguments.output.log_dir
    if output is not None and log is not None and resolved(log).is_relative_to(resolved(output)):
        raise ArgumentError(f"log_dir={log!r} lies in output_dir, which appears when the run is done: name another one")


def check_named(output: str | Path, form: Format) -> None:
    """Refuse a folder that is named like the file of another format, such as `model.gguf`.

    Args:
        output: of the checkpoint.
        form: in which it is written.

    Raises:
        ArgumentError: names the format.
    """
    suffix = Path(output).suffix.removeprefix(".")
    if suffix not in registry.names("formats"):
        return
    other = registry.find("formats", suffix)
    if other.publish is not Format.publish and not isinstance(form, other):  # a container of its own, not safetensors
        raise ArgumentError(
            f"output_dir {str(output)!r} is named like a file of the format {suffix!r}: pass format={suffix!r}, which "
            "writes that file into a folder, or another name"
        )


def check_apart(output: str | Path, model: Any) -> None:
    """Refuse an output that is the folder that a model was read from, or holds it; inside of it is fine.

    Args:
        output: of the checkpoint.
        model: in memory, or the text that names it.

    Raises:
        CheckpointError: names both folders.
    """
    source = _folder(model) if isinstance(model, str) else origin_folder(model)
    if source is not None:
        check_origin(output, source)


def check_origin(output: str | Path, source: Path) -> None:
    """Refuse an output that is a folder that was read, or holds it.

    Raises:
        CheckpointError: names both folders.
    """
    destination = Destination(resolved(output))
    for place in (destination.output, destination.partial):
        if source.resolve().is_relative_to(place):
            what = "is" if source.resolve() == place else "holds"
            raise CheckpointError(
                f"{place} {what} the folder of the model, {source}, which stays as it is: name another output"
            )


def _folder(name: str) -> Path | None:
    path = Path(name)
    return path if path.is_dir() else path.parent if path.is_file() else None
