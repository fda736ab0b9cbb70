"""Prediction: what is known of a run before it begins, as `coldpress plan` shows it and `report.json` keeps it."""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict, frozen

from coldpress.report.contents import bits_per_weight
from coldpress.report.words import html_table, in_bytes, in_time


@frozen(kw_only=True)
class LayerKind:
    """Layers that are alike: their names differ in numbers only.

    Attributes:
        name: of the layers, `*` for what differs.
        count: of layers.
        shape: of their weights, (O, I).
        scheme: in words; None where they stay dense.
        modifiers: that change them, in recipe order.
        before: bytes of all of them in the dtype of the model; of a shared weight, for the first kind that has it.
        after: bytes of all of them in the checkpoint.
    """

    name: str
    count: int
    shape: tuple[int, int]
    scheme: str | None
    modifiers: tuple[str, ...]
    before: int
    after: int


@frozen(kw_only=True)
class StagePrediction:
    """One stage.

    Attributes:
        name: of the stage.
        seconds: that it takes, as estimated.
        host: bytes that its work holds in host memory beyond what the process held before.
        device: bytes that it holds on an accelerator; 0 on a CPU.
        parts: what these bytes are, by name.
        exchanged: bytes that a rank receives from others.
    """

    name: str
    seconds: float
    host: int
    device: int
    parts: Mapping[str, int]
    exchanged: int = 0


@frozen(kw_only=True)
class EngineVerdict:
    """What an engine does with the checkpoint.

    Attributes:
        engine: its name and version.
        verdict: `loads`, `refuses`, or `unknown`.
        why: where it was seen, or what the engine says.
    """

    engine: str
    verdict: str
    why: str


@frozen(kw_only=True, repr=False)
class Prediction:
    """What is known of a run before it begins.

    Attributes:
        weights: numbers of the model.
        before: bytes of the model's tensors as they are stored; where a source decodes them, in the model's dtype.
        after: bytes of the checkpoint's tensors; exact, but where experts are dropped or bits are chosen from data.
        files: bytes of its safetensors files with their headers, exact as `after`; None where the format writes other
            files.
        disk: bytes on the disk while the run works, at most.
        now: bytes that the process holds before the run.
        stages: one after the other.
        beside: seconds that the run takes before its first stage and after its last.
        spread: factors of the estimated time between which it is expected.
        kinds: a line for each kind of layer.
        left_alone: name and reason of layers that stay dense.
        unmatched: modifier and pattern of rules that match nothing.
        split: layers that engines fuse and that would not have one scheme.
        data: what is calibrated on; None where no data are read.
        engines: what they do with checkpoints of this format; empty where that was not tried.
        rates: of this machine, by name.
        notes: what could not be counted.
        ranks: that share the work; memory is that of each, time that of all together.
    """

    weights: int
    before: int
    after: int
    files: int | None
    disk: int
    now: int
    stages: tuple[StagePrediction, ...]
    beside: float = 0.0
    spread: tuple[float, float]
    kinds: tuple[LayerKind, ...]
    left_alone: tuple[tuple[str, str], ...]
    unmatched: tuple[tuple[str, str], ...]
    split: tuple[str, ...]
    data: Mapping[str, Any] | None
    engines: tuple[EngineVerdict, ...]
    rates: Mapping[str, Any]
    notes: tuple[str, ...]
    ranks: int = 1

    def bits(self) -> float:
        """Bits per weight of the whole checkpoint."""
        return bits_per_weight(self.after, self.weights)

    def peak(self) -> StagePrediction:
        """The stage that holds most memory where it is computed."""
        return max(self.stages, key=lambda stage: stage.device or stage.host)

    def host_nbytes(self) -> int:
        """The most that the process will hold in host memory."""
        return self.now + max(stage.host for stage in self.stages)

    def device_nbytes(self) -> int:
        """The most that it will hold on an accelerator; 0 on a CPU."""
        return max(stage.device for stage in self.stages)

    def seconds(self) -> tuple[float, float]:
        """The range that the run's time is expected in."""
        total = sum(stage.seconds for stage in self.stages) + self.beside
        return total * self.spread[0], total * self.spread[1]

    def __repr__(self) -> str:
        return f"<Prediction: {'; '.join(f'{name} {words}' for name, words in self.facts())}>"

    def _repr_html_(self) -> str:
        """For notebooks."""
        return html_table(self.facts())

    def facts(self) -> list[tuple[str, str]]:
        """The plan in a few words."""
        low, high = self.seconds()
        device = self.device_nbytes()
        return [
            ("size", f"{in_bytes(self.before)} -> {in_bytes(self.after)}"),
            ("bits per weight", f"{self.bits():.2f}"),
            ("host memory", in_bytes(self.host_nbytes())),
            *([("device memory", in_bytes(device))] if device else []),
            ("disk", in_bytes(self.disk)),
            ("time", f"{in_time(low)} to {in_time(high)}"),
        ]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        low, high = self.seconds()
        return {
            "size": {
                "weights": self.weights,
                "bytes_before": self.before,
                "bytes_after": self.after,
                "file_bytes": self.files,
                "bits_per_weight": round(self.bits(), 4),
            },
            "memory": {
                "host_bytes": self.host_nbytes(),
                "device_bytes": self.device_nbytes(),
                "stage": self.peak().name,
                "before_the_run": self.now,
                "parts": dict(self.peak().parts),
            },
            "ranks": {"count": self.ranks, "exchanged_bytes": sum(stage.exchanged for stage in self.stages)},
            "disk": {"bytes_while_running": self.disk},
            "seconds": {"low": round(low, 3), "high": round(high, 3)},
            "stages": [asdict(stage) for stage in self.stages],
            "layers": [asdict(kind) for kind in self.kinds],
            "left_alone": [{"name": name, "reason": reason} for name, reason in self.left_alone],
            "rules_without_layers": [{"modifier": owner, "pattern": rule} for owner, rule in self.unmatched],
            "split_groups": list(self.split),
            "data": None if self.data is None else dict(self.data),
            "engines": [asdict(engine) for engine in self.engines],
            "rates": dict(self.rates),
            "notes": list(self.notes),
        }


def summary_of(prediction: Prediction) -> dict[str, Any]:
    """What a report keeps of it beside what happened: the numbers, and the lines of kinds of layers."""
    fields = prediction.to_dict()
    kept: Sequence[str] = ("size", "memory", "disk", "seconds", "stages", "layers", "engines", "rates", "notes")
    return {name: fields[name] for name in kept}
