"""What a report says in words: a verdict, large numbers, tables."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from coldpress.report.histogram import WORST
from coldpress.report.page.place import values_of
from coldpress.report.words import in_bytes, in_error, in_time

_STATUSES = (
    ("quantized", "quantized"),
    ("changed", "changed"),
    ("fallback", "fell back"),
    ("untouched", "not compressed"),
)

Json = Mapping[str, Any]


def verdict(report: Json, evaluation: Json) -> str:
    """What became of the model, in one or two sentences."""
    lines = report.get("layers", [])
    counts = Counter(line["status"] for line in lines)
    parts = [f"{counts[status]} {words}" for status, words in _STATUSES if counts[status]]
    sentence = f"{len(lines)} layers: {', '.join(parts)}"
    schemes = Counter(line["scheme"] for line in lines if line.get("scheme"))
    if schemes:
        more = f" and {len(schemes) - 1} other schemes" if len(schemes) > 1 else ""
        sentence += f"; {schemes.most_common(1)[0][0]}{more}"
    before, after = sizes(report)
    if before and after:
        sentence += f"; {before / after:.2f} times smaller" if before >= after else "; larger than before"
    return f"{sentence}.{_judged(evaluation)}"


def _judged(evaluation: Json) -> str:
    found, reference = evaluation.get("perplexity"), evaluation.get("reference_perplexity")
    if not found:
        return " What the text lost is not measured: coldpress evaluate MODEL --against ORIGINAL --report DIR adds it."
    if not reference:
        return f" Perplexity {_number(found['value'])}."
    before, after, change = _number(reference["value"]), _number(found["value"]), _change(evaluation)
    return f" Perplexity {before} became {after}{f' ({change})' if change else ''}."


def _change(evaluation: Json) -> str:
    """By how much perplexity changed; its error is that of paired windows.  Empty where one is not finite."""
    new, old = evaluation["perplexity"]["value"], evaluation["reference_perplexity"]["value"]
    if new is None or old is None:
        return ""
    ratio = new / old
    error = (evaluation.get("divergence") or {}).get("log_ratio_standard_error") or 0
    words = in_error(100 * (ratio - 1), 100 * ratio * error) if error else f"{100 * (ratio - 1):.1f}"
    return f"{'+' if ratio >= 1 else ''}{words} %"


def sizes(report: Json) -> tuple[int | None, int | None]:
    """Bytes of tensors before and after."""
    size = (report.get("predicted") or {}).get("size", {})
    measured = (report.get("measured") or {}).get("bytes_after")
    return size.get("bytes_before"), measured or size.get("bytes_after")


def numbers(report: Json, evaluation: Json) -> list[tuple[str, str, str]]:
    """The large numbers: value, what it is, and what it is compared with."""
    before, after = sizes(report)
    predicted, measured = report.get("predicted") or {}, report.get("measured") or {}
    weights, plan = predicted.get("size", {}).get("weights"), predicted.get("seconds")
    errors = values_of(report.get("layers", []), "weight_error")
    memory = predicted.get("memory", {}).get("host_bytes")
    tiles = [(in_bytes(after), "tensors", f"{in_bytes(before)} before" if before else "")] if after else []
    if weights and after:
        tiles.append((f"{8 * after / weights:.2f}", "bits per weight", "of the whole model, scales included"))
    if errors:
        mean = sum(errors.values()) / len(errors)
        tiles.append((f"{mean:.2%}", "mean weight error", f"at most {max(errors.values()):.2%}"))
    if report.get("seconds"):
        words = f"planned {in_time(plan['low'])} to {in_time(plan['high'])}" if plan else ""
        tiles.append((in_time(report["seconds"]), "time", words))
    if measured.get("host_bytes"):
        tiles.append((in_bytes(measured["host_bytes"]), "peak memory", f"planned {in_bytes(memory)}" if memory else ""))
    return tiles + _evaluated(evaluation)


def _evaluated(evaluation: Json) -> list[tuple[str, str, str]]:
    found, reference, distance = (evaluation.get(k) for k in ("perplexity", "reference_perplexity", "divergence"))
    tiles = []
    if found:
        words = f"{_plus_minus(reference)} of the original" if reference else ""
        tiles.append((_plus_minus(found), "perplexity", words))
    if distance:
        tiles.append((in_error(distance["kl"], distance["kl_standard_error"] or 0), "KL divergence", "nats a token"))
        tiles.append((f"{distance['top1_agreement']:.2%}", "top-1 agreement", "same token most likely"))
    return tiles


def _plus_minus(measured: Json) -> str:
    return _number(measured["value"], measured["standard_error"])


def _number(value: float | None, error: float | None = None) -> str:
    """A number with its error; JSON has null for one that is not finite."""
    return "not finite" if value is None else in_error(value, error or 0)


def evaluation_rows(evaluation: Json) -> list[tuple[str, str]]:
    """What was measured on a text: names and numbers, errors clustered by window."""
    found, reference, distance = (evaluation.get(k) for k in ("perplexity", "reference_perplexity", "divergence"))
    rows = [("text", str(evaluation["text"]))] if evaluation.get("text") else []
    if found:
        rows += [("tokens", str(found["tokens"])), ("perplexity", _plus_minus(found))]
    if found and reference:
        change = _change(evaluation)
        rows.append(("perplexity of the original", _plus_minus(reference) + (f", change {change}" if change else "")))
    if distance:
        rows.append(("KL divergence", in_error(distance["kl"], distance["kl_standard_error"] or 0) + " nats a token"))
        rows += [(f"KL, {name}", f"{value:.4g}") for name, value in (distance.get("kl_percentiles") or {}).items()]
        agreement, error = distance["top1_agreement"], distance.get("top1_standard_error") or 0
        rows.append(("top-1 agreement", in_error(100 * agreement, 100 * error) + " %"))
        if distance.get("delta_p") is not None:
            change = in_error(100 * distance["delta_p"], 100 * (distance["delta_p_standard_error"] or 0))
            rows.append(("probability of the right token", f"{change} points on average"))
            rows += [(f"of it, {k}", f"{100 * v:+.3g} points") for k, v in distance["delta_p_percentiles"].items()]
    return rows


def task_rows(evaluation: Json) -> list[tuple[str, str, str, str, str]]:
    """What tasks of lm-eval gave: task, metric, number with its error, that of the original, documents."""
    tasks, others = evaluation.get("tasks") or {}, evaluation.get("reference_tasks") or {}
    rows = []
    for task, content in tasks.get("results", {}).items():
        for metric, found in content["metrics"].items():
            other = others.get("results", {}).get(task, {}).get("metrics", {}).get(metric)
            numbers = [_plus_minus(one) if one else "" for one in (found, other)]
            rows.append((task, metric, *numbers, str(content["samples"])))
    return rows


def worst_layers(lines: Sequence[Json]) -> list[tuple[str, str, str, str]]:
    """The layers that lose most: name, scheme, weight error, notes."""
    errors = values_of(lines, "weight_error")
    by_name = {line["name"]: line for line in lines}
    worst = sorted(errors, key=lambda name: -errors[name])[:WORST]
    return [
        (name, by_name[name].get("scheme") or "", f"{by_name[name]['weight_error'] or 0:.2%}", notes(by_name[name]))
        for name in worst
    ]


def notes(line: Json) -> str:
    """The notes of a layer in a line."""
    notes = (f"{key.replace('_', ' ')} {_short(value)}" for key, value in line.get("notes", {}).items())
    return "; ".join(notes)


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def reasons(lines: Sequence[Json], status: str) -> list[tuple[str, int, list[str]]]:
    """Why layers have a status: reason, how many, their names."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if line["status"] == status:
            found.setdefault(line.get("reason") or "no reason is known", []).append(line["name"])
    return [(reason, len(names), names) for reason, names in found.items()]
