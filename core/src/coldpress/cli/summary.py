"""What `coldpress compress` says at the end."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text
from torch import nn

from coldpress.layer_report import LayerReport, Status
from coldpress.report.contents import Contents, contents_of, share_of_zeros
from coldpress.report.report import NAME
from coldpress.report.table import facts
from coldpress.report.words import in_bytes, in_time
from coldpress.schemes import describe, preset, preset_names
from coldpress.state import State

_STATUSES: dict[Status, str] = {
    "quantized": "quantized",
    "changed": "changed",
    "fallback": "fell back",
    "untouched": "not compressed",
}
_MOST_LINES = 8
_MANY_ZEROS = 0.3


def summary(
    state: State, folder: Path, *, seconds: float, memory: int | None, before: int | None = None
) -> RenderableType:
    """The run in ten lines, and what was not compressed.

    Args:
        state: of the finished run.
        folder: the checkpoint.
        seconds: that it took, loading and saving included.
        memory: peak, in bytes.
        before: bytes of the weights before; None for those of the state's model.
    """
    checkpoints, lines = checkpoints_in(folder), list(state.report.values())
    size = parameter_bytes(state.model) if before is None else before
    rows = [
        ("layers", _counted(lines)),
        ("schemes", "; ".join(_schemes(lines)) or "none"),
        *((f"size{form}", _sizes(size, contents)) for form, contents in checkpoints.items()),
        *((f"bits per weight{form}", bits(contents)) for form, contents in checkpoints.items()),
        *zero_weights(share_of_zeros([line.to_dict() for line in lines])),
        *_output_errors(lines),
        ("weight error", _errors(lines)),
        ("time", in_time(seconds)),
        ("peak memory", in_bytes(memory)),
    ]
    parts: list[RenderableType] = [facts(rows)]
    left = [(line.name, line.reason or "") for line in lines if line.status in ("untouched", "fallback")]
    return Group(*parts, *reasons(left, more=f"all of them in {NAME}"), Text(""))


def checkpoints_in(folder: Path) -> dict[str, Contents]:
    """What a run wrote, under nothing, or of several formats under the words that name each."""
    inside = [] if (folder / "config.json").is_file() else sorted(folder.glob("*/config.json"))
    found = {f", {path.parent.name}": contents_of(path.parent) for path in inside}
    return found or {"": contents_of(folder)}


def reasons(left: Iterable[tuple[str, str]], *, more: str) -> list[RenderableType]:
    """Which layers were left alone and why; layers with one reason stand together.

    Args:
        left: name and reason.
        more: where the rest is, when there are too many to show.
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in left:
        by_reason.setdefault(reason, []).append(name)
    if not by_reason:
        return []
    shown = [(_names(names), reason) for reason, names in list(by_reason.items())[:_MOST_LINES]]
    cut = len(by_reason) > _MOST_LINES or any(len(names) > 3 for names in by_reason.values())
    heading = Text("\nnot compressed", style="bold") + Text(f" ({more})" if cut else "", style="dim")
    return [heading, facts(shown)]


def bits(contents: Contents) -> str:
    """Bits per weight in words: of the model, and of what is quantized in it."""
    quantized = contents.quantized_bits()
    inside = "" if quantized is None else f" ({quantized:.2f} in quantized layers)"
    return f"{contents.bits():.2f}{inside}"


def zero_weights(share: float | None) -> list[tuple[str, str]]:
    """How many weights are zero, where they are more than rounding to a few bits makes."""
    return [] if share is None or share < _MANY_ZEROS else [("zero weights", f"{share:.1%} in compressed layers")]


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights in memory; weights that modules share are counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _names(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[1]} and {len(names) - 2} more"


def _counted(lines: Iterable[LayerReport]) -> str:
    counts = Counter(line.status for line in lines)
    return ", ".join(f"{counts[status]} {word}" for status, word in _STATUSES.items() if counts[status])


def _schemes(lines: Iterable[LayerReport]) -> list[str]:
    counts = Counter(_named(line.scheme) for line in lines if line.scheme)
    return [scheme if len(counts) == 1 else f"{scheme} in {count} layers" for scheme, count in counts.most_common()]


def _named(scheme: str) -> str:
    """A scheme with the name of the preset that it is."""
    name = next((one for one in preset_names() if describe(preset(one)) == scheme), None)
    return scheme if name is None else f"{name}: {scheme}"


def _sizes(before: int, contents: Contents) -> str:
    after = contents.nbytes()
    return f"{in_bytes(before)} -> {in_bytes(after)} ({_ratio(before, after)})"


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.2f} times smaller" if before >= after else f"{after / before:.2f} times larger"


def _output_errors(lines: Iterable[LayerReport]) -> list[tuple[str, str]]:
    """How the errors of outputs compare with those of rounding to nearest, where modifiers note that."""
    found = {line.name: line.notes["rounding_ratio"] for line in lines if "rounding_ratio" in line.notes}
    if not found:
        return []
    worst, mean = max(found, key=lambda name: found[name]), sum(found.values()) / len(found)
    return [("output error", f"{mean:.2f} of that of rounding to nearest, at most {found[worst]:.2f} in {worst}")]


def _errors(lines: Iterable[LayerReport]) -> str:
    measured = {line.name: line.weight_error for line in lines if line.weight_error is not None}
    if not measured:
        return "not measured"
    worst = max(measured, key=lambda name: measured[name])
    mean = sum(measured.values()) / len(measured)
    return f"mean {mean:.2%}, largest {measured[worst]:.2%} in {worst}"
