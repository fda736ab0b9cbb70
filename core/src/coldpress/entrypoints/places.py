"""Whether what a run writes may lie where it is asked for, beside what the run reads; looked at before any work."""

from pathlib import Path
from typing import Any

from coldpress.arguments import Arguments
from coldpress.checkpoint.destination import Destination, resolved
from coldpress.errors import ArgumentError, CheckpointError
from coldpress.models.origin import origin_folder


def check_log(arguments: Arguments) -> None:
    """Refuse a log inside of the output, before it is opened.

    Raises:
        ArgumentError: it would lie in a folder that appears only when the run is done.
    """
    output, log = arguments.output.output_dir, arguments.output.log_dir
    if output is not None and log is not None and resolved(log).is_relative_to(resolved(output)):
        raise ArgumentError(f"log_dir={log!r} lies in output_dir, which appears when the run is done: name another one")


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
