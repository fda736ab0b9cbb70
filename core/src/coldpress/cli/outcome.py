"""What a run that wrote a checkpoint prints at its end: a summary, JSON, or the folder alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coldpress.cli.console import out, print_json, print_path
from coldpress.cli.summary import checkpoints_in, parameter_bytes, summary
from coldpress.layer_report import LayerReport
from coldpress.report.contents import Contents, share_of_zeros
from coldpress.state import State


def print_outcome(
    form: str,
    state: State,
    folder: Path,
    *,
    quiet: bool,
    as_json: bool,
    **measured: Any,
) -> None:
    """Print it; the last line is the folder, but in JSON.

    Args:
        form: of the JSON, `compress` or `convert`.
        state: of the finished run.
        folder: the checkpoint.
        quiet: no summary.
        as_json: JSON alone.
        **measured: `seconds`, `memory` and `before`, as `summary` takes them.
    """
    if as_json:
        print_json(form, outcome(state, folder, **measured))
        return
    if not quiet:
        out().print(summary(state, folder, **measured))
    print_path(folder)


def outcome(
    state: State, folder: Path, *, seconds: float, memory: int | None, before: int | None = None
) -> dict[str, Any]:
    """The run in numbers; arguments as those of `summary`."""
    found, lines = checkpoints_in(folder), list(state.report.values())
    sizes = {form.removeprefix(", "): _sizes(contents) for form, contents in found.items()}
    return {
        "output": str(folder),
        "layers": dict(Counter(line.status for line in lines)),
        "schemes": dict(Counter(line.scheme for line in lines if line.scheme)),
        "bytes_before": parameter_bytes(state.model) if before is None else before,
        **(next(iter(sizes.values())) if len(sizes) == 1 else {"formats": sizes}),
        "weight_error": _spread({line.name: line.weight_error for line in lines}),
        "output_error_over_rounding": _spread({line.name: line.notes.get("rounding_ratio") for line in lines}),
        "zeros": share_of_zeros([line.to_dict() for line in lines]),
        "seconds": round(seconds, 3),
        "peak_memory_bytes": memory,
        "calibration": None if state.calibration is None else dict(state.calibration),
        "not_compressed": _left(lines),
    }


def _sizes(contents: Contents) -> dict[str, Any]:
    quantized = contents.quantized_bits()
    return {
        "bytes_after": contents.nbytes(),
        "bits_per_weight": round(contents.bits(), 4),
        "quantized_bits_per_weight": None if quantized is None else round(quantized, 4),
    }


def _spread(found: Mapping[str, float | None]) -> dict[str, Any] | None:
    """Mean and largest of what was measured; None where nothing was."""
    measured = {name: value for name, value in found.items() if value is not None}
    if not measured:
        return None
    worst = max(measured, key=lambda name: measured[name])
    return {"mean": sum(measured.values()) / len(measured), "largest": measured[worst], "layer": worst}


def _left(lines: Sequence[LayerReport]) -> list[dict[str, Any]]:
    left = [line for line in lines if line.status in ("untouched", "fallback")]
    return [{"name": line.name, "status": line.status, "reason": line.reason} for line in left]
