"""The page of a folder that a run wrote, made again from the files beside it, and what evaluations add to it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coldpress.checkpoint.disk import checksum, disk_errors
from coldpress.checkpoint.reader import read_json
from coldpress.errors import CheckpointError
from coldpress.report.manifest import NAME as MANIFEST
from coldpress.report.page.page import PAGE, page_of
from coldpress.report.report import NAME as REPORT
from coldpress.report.report import read_report

EVALUATION = "evaluation.json"
_RECIPE = "recipe.yaml"


def render_folder(folder: Path) -> str:
    """The page of a folder.

    Raises:
        CheckpointError: it has no report, or a file of it is damaged.
    """
    report = read_report(folder) if folder.is_dir() else None
    if report is None:
        raise CheckpointError(
            f"{str(folder)!r} has no {REPORT}: a report is of a folder that coldpress wrote; `coldpress inspect` says "
            "what any checkpoint holds"
        )
    recipe = folder / _RECIPE
    text = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else ""
    try:
        return page_of(report, recipe=text, manifest=_table(folder / MANIFEST), evaluation=read_evaluation(folder))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        names = f"{REPORT} or {EVALUATION}" if (folder / EVALUATION).is_file() else REPORT
        raise CheckpointError(f"{folder / names} is not as coldpress writes it ({reason})") from error


def write_page(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a folder, in the folder itself or to a file, and return where it is.

    Raises:
        CheckpointError: it has no report, the file is a folder, or the disk is full.
    """
    page, place = render_folder(folder), output or folder / PAGE
    _write(place, page)
    if output is None:
        _know(folder, PAGE)
    return place


def read_evaluation(folder: Path) -> dict[str, Any]:
    """What evaluations of a folder have measured so far; empty where there was none.

    Raises:
        CheckpointError: the file is not JSON.
    """
    return _table(folder / EVALUATION)


def keep_evaluation(folder: Path, measured: Mapping[str, Any]) -> Path:
    """Store what an evaluation measured beside what earlier ones did, and write the page again.

    Args:
        folder: that a run wrote.
        measured: name to result; a result replaces an earlier one of its name, and None removes it.

    Raises:
        CheckpointError: the folder has no report, or the disk is full.
    """
    render_folder(folder)  # what has no report is refused before anything is written
    kept = {name: one for name, one in {**read_evaluation(folder), **measured}.items() if one is not None}
    _write(folder / EVALUATION, json.dumps(kept, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    _know(folder, EVALUATION)
    return write_page(folder)


def _table(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _write(path: Path, text: str) -> None:
    """Write a file by one rename, so that it is whole or not there."""
    if path.is_dir():
        raise CheckpointError(f"cannot write {path}: it is a folder, and the page is a file")
    draft = path.with_name(f"{path.name}.partial")
    with disk_errors(path):
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)


def _know(folder: Path, name: str) -> None:
    """Let the manifest know the checksum of a file of ours, so that a later run may replace it."""
    manifest = _table(folder / MANIFEST)
    if isinstance(manifest.get("files"), dict):
        manifest["files"][name] = checksum(folder / name)
        _write(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
