"""What `report.json` says: every layer and what became of it, and the run in numbers."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, field, frozen

from coldpress.errors import CheckpointError
from coldpress.layer_report import LayerReport, Note
from coldpress.modifier import Modifier, declared_notes
from coldpress.report.histogram import keep_worst
from coldpress.report.words import html_table, in_time
from coldpress.state import State

NAME = "report.json"


@frozen(repr=False)
class Report:
    """What became of a model.

    Attributes:
        layers: one line for every layer, in model order.
        recipe: YAML that makes the same checkpoint again.
        seconds: of the whole run.
        log: one entry a stage.
        calibration: what the model was calibrated on; None where no data are read.
        predicted: what was expected before the run began (`coldpress plan`); empty where nothing was.
        measured: what came of it, in the same units.
        notes: what the keys of notes on layers mean.
        training: how the model was trained, in numbers, and the losses on the way; None where it was not.
    """

    layers: tuple[LayerReport, ...]
    recipe: str
    seconds: float
    log: tuple[Mapping[str, Any], ...] = ()
    calibration: Mapping[str, Any] | None = None
    predicted: Mapping[str, Any] = field(factory=dict)
    measured: Mapping[str, Any] = field(factory=dict)
    notes: tuple[Note, ...] = ()
    training: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<Report: {'; '.join(f'{name} {words}' for name, words in self.facts())}>"

    def _repr_html_(self) -> str:
        """For notebooks."""
        return html_table(self.facts())

    def facts(self) -> list[tuple[str, str]]:
        """The run in a few words."""
        counts = ", ".join(f"{count} {status}" for status, count in sorted(self.summary().items()))
        errors = {line.name: line.weight_error for line in self.layers if line.weight_error is not None}
        facts = [("layers", counts or "none")]
        if errors:
            worst = max(errors, key=lambda name: errors[name])
            mean = sum(errors.values()) / len(errors)
            facts.append(("weight error", f"mean {mean:.2%}, largest {errors[worst]:.2%} in {worst}"))
        return [*facts, ("time", in_time(self.seconds))]

    def to_dict(self) -> dict[str, Any]:
        """The content of `report.json`."""
        return {
            "summary": self.summary(),
            "seconds": round(self.seconds, 3),
            "calibration": None if self.calibration is None else dict(self.calibration),
            "predicted": dict(self.predicted),
            "measured": dict(self.measured),
            **({} if self.training is None else {"training": dict(self.training)}),
            "notes": [asdict(note) for note in self.notes],
            "stages": [dict(entry) for entry in self.log],
            "layers": [line.to_dict() for line in self.layers],
        }

    def summary(self) -> dict[str, int]:
        """How many layers ended in each status."""
        return dict(Counter(line.status for line in self.layers))


def report_of(state: State, modifiers: Sequence[Modifier], *, recipe: str, seconds: float) -> Report:
    """The report of a finished run; of a resumed one too, the layers that lost most are those with histograms."""
    keep_worst(state.report)
    keys = {key for line in state.report.values() for key in line.notes}
    notes = tuple(note for key, note in declared_notes(modifiers).items() if key in keys)
    return Report(tuple(state.report.values()), recipe, seconds, tuple(state.log), state.calibration, notes=notes)


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report inside a checkpoint; None when it has none.

    Raises:
        CheckpointError: the file is not JSON, or something else than a report.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    lines = content.get("layers", []) if isinstance(content, dict) else None
    if not isinstance(lines, list) or not all(isinstance(line, dict) and "name" in line for line in lines):
        raise CheckpointError(
            f"{path} is no report of a run: it has no table of layers; the folder is whole without it"
        )
    return content
