"""`coldpress plan`: size, memory, disk and time of a run, before it begins."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from coldpress.cli.compress import advised, compress, settings_of
from coldpress.cli.console import out, print_json
from coldpress.cli.model_free import of_model_free
from coldpress.cli.option import Json, option
from coldpress.errors import ArgumentError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from coldpress.planning import Prediction

_ONLY_RUNNING = ("log_dir", "quiet", "check_tensors", "as_json")


def plan(
    *,
    output: Path | None = None,
    ranks: int = 1,
    device_profile: Path | None = None,
    as_json: bool = False,
    model_free: bool = False,
    max_workers: int | None = None,
    **options: Any,
) -> None:
    """Say what a run will write, hold in memory and take, layer by layer; no weight is read.

    Sizes are exact, but where data decide on them; memory and time are estimates.  What could not end well is refused,
    as `compress` would.

    coldpress plan smollm2 --scheme W4A16 --group-size 64
    """
    from coldpress.entrypoints.plan import plan as predicted

    for name in ("overwrite", "restart"):
        if options[name] and output is None:
            raise ArgumentError(f"--{name} goes with --output: without one no folder is looked at")
    settings = settings_of(output=output, model_free=model_free, max_workers=max_workers, **options)
    if model_free:
        settings = {**of_model_free(settings), "model_free": True, "max_workers": max_workers}
    else:
        settings["quiet"] = as_json
    with advised(settings["recipe"]):
        prediction = predicted(**settings, ranks=ranks, device_profile=device_profile)
    if as_json:
        print_json("plan", prediction.to_dict())
        return
    for part in shown(prediction):
        out().print(part)


def _signature() -> inspect.Signature:
    """The options of `compress` that a plan depends on, the output among them if one is named, and --json."""
    place = option("Output", "--output/-o", "DIR", "Where a run would write: is there room?", shown="not looked at")
    found = [p for p in inspect.signature(compress).parameters.values() if p.name not in (*_ONLY_RUNNING, "output")]
    several = option("Machine", "--ranks", "N", "Processes that share the work, as under torchrun.", shown="1")
    profile = option("Machine", "--device-profile", "FILE", "Rates of another machine, as JSON.", shown="this one's")
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter("ranks", keyword, default=1, annotation=Annotated[int, several]),
        inspect.Parameter("device_profile", keyword, default=None, annotation=Annotated[Path | None, profile]),
        inspect.Parameter(
            "output", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, place]
        ),
        inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json),
    ]
    return inspect.Signature([*found, *more])


plan.__signature__ = _signature()  # type: ignore[attr-defined]
plan.__annotations__ = {p.name: p.annotation for p in _signature().parameters.values()}


def shown(prediction: "Prediction") -> "list[RenderableType]":
    """The plan in tables of 80 columns."""
    from rich.text import Text

    from coldpress.cli.summary import reasons
    from coldpress.report.table import facts

    parts: list[RenderableType] = [facts(_totals(prediction)), Text(""), _kinds(prediction)]
    parts += reasons(prediction.left_alone, more="all of them with --json")
    rules = [(owner, f"{rule!r} matches no layer") for owner, rule in prediction.unmatched]
    for title, rows in (
        ("rules that match nothing", rules),
        ("fused layers with several schemes", [("", words) for words in prediction.split]),
        ("engines", [(one.engine, f"{one.verdict}: {one.why}") for one in prediction.engines]),
        ("not counted", [("", words) for words in prediction.notes]),
    ):
        if rows:
            parts += [Text(f"\n{title}", style="bold"), facts(rows)]
    return parts


def _totals(prediction: "Prediction") -> list[tuple[str, str]]:
    from coldpress.report.words import in_bytes, in_time

    low, high = prediction.seconds()
    peak, device = prediction.peak(), prediction.device_nbytes()
    held = ", ".join(f"{name} {in_bytes(size)}" for name, size in sorted(peak.parts.items(), key=lambda i: -i[1])[:3])
    times = f"({prediction.before / prediction.after:.2f} times smaller)" if prediction.after else ""
    rows = [
        ("size", f"{in_bytes(prediction.before)} -> {in_bytes(prediction.after)} {times}"),
        ("exactly", f"{prediction.after} bytes of tensors{_files(prediction)}"),
        ("bits per weight", f"{prediction.bits():.2f}"),
        ("host memory", f"{in_bytes(prediction.host_nbytes())}, {in_bytes(prediction.now)} of it are held now"),
        *([("device memory", in_bytes(device))] if device else []),
        ("peaks in", f"{peak.name}: {held}"),
        ("disk", f"{in_bytes(prediction.disk)} while it runs"),
        ("time", f"{in_time(low)} to {in_time(high)} on {_machine(prediction)}"),
        ("data", _data(prediction)),
    ]
    return rows


def _machine(prediction: "Prediction") -> str:
    where = (
        "this machine" if prediction.rates["device"] in ("cpu", "cuda", "mps", "xpu") else prediction.rates["device"]
    )
    return where if prediction.ranks == 1 else f"{prediction.ranks} ranks of {where}"


def _files(prediction: "Prediction") -> str:
    return "" if prediction.files is None else f", {prediction.files} of files"


def _data(prediction: "Prediction") -> str:
    data = prediction.data
    if data is None:
        return "none are read"
    tokens = "" if data["tokens"] is None else f", {data['tokens']} tokens, {data['padding']} of padding"
    return f"{data['dataset']}, {data['samples']} samples{tokens}"


def _kinds(prediction: "Prediction") -> "RenderableType":
    from coldpress.report.table import grid
    from coldpress.report.words import in_bytes

    columns = ("layers", "", "shape", "becomes", "before", "after")
    rows = [
        (
            kind.name,
            str(kind.count),
            f"{kind.shape[0]} x {kind.shape[1]}",
            " ".join([kind.scheme or "as it is", *(f"({name})" for name in kind.modifiers)]),
            in_bytes(kind.before),
            in_bytes(kind.after),
        )
        for kind in prediction.kinds
    ]
    return grid(columns, rows, numbers=("", "before", "after"))
