"""`coldpress trace`: the stages of a model, which layers share an input, who absorbs a scale, what experts see."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from attrs import asdict

from coldpress.arguments import DatasetArguments
from coldpress.cli.console import out, print_json
from coldpress.cli.option import Device, Json, TrustRemoteCode, default_of, option
from coldpress.errors import ArgumentError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.tree import Tree

    from coldpress.dataflow import BlockKind, Dataflow, Pair
    from coldpress.experts import Usage

_MODEL = "A folder, a hub id, or a file or name that a source reads."
_EXPERTS = "Experts"
_BARS, _WIDEST = "▁▂▃▄▅▆▇█", 32  # of a picture, one bar for each expert, or for several side by side


def trace(
    model: Annotated[str, typer.Argument(help=_MODEL, show_default=False)],
    *,
    sequential_targets: Annotated[
        list[str] | None,
        option(
            None, "--sequential-targets", "BLOCK", "Class, name or re:pattern of a block; repeatable.", shown="found"
        ),
    ] = None,
    dataset: Annotated[
        str | None, option(_EXPERTS, "--dataset", "NAME", "Also run these data, and show what experts see.")
    ] = None,
    num_calibration_samples: Annotated[
        int, option(_EXPERTS, "--num-calibration-samples", "N", "Samples that are used.", least=1)
    ] = default_of(DatasetArguments, "num_calibration_samples"),
    max_seq_length: Annotated[
        int | None, option(_EXPERTS, "--max-seq-length", "N", "Tokens a sample at most.", shown="the model's", least=1)
    ] = default_of(DatasetArguments, "max_seq_length"),
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Show the stages of a model, the inputs that layers share, its verified smoothing mappings, and load of experts.

    One block of each kind is probed with random factors in float64; nothing is known of any architecture by name.
    With --dataset the model is run: tokens and saliency of every expert are as its router sends them.
    """
    from coldpress.dataflow import describe
    from coldpress.models import load_model

    subject = load_model(model, dtype="auto", device=device, trust_remote_code=trust_remote_code)
    description = describe(subject, targets=sequential_targets)
    usages = []
    if dataset is not None:
        arguments = DatasetArguments(
            dataset=dataset, num_calibration_samples=num_calibration_samples, max_seq_length=max_seq_length
        )
        usages = _usages(model, subject, arguments)
    if as_json:
        experts = {"experts": [asdict(one) for one in usages]} if usages else {}
        print_json("trace", {**description.to_dict(), **experts})
        return
    from rich.tree import Tree

    tree = Tree(f"[bold]{description.class_name}[/]")
    _leaves(tree.add("[cyan]prologue[/]"), description.prologue)
    for kind in description.kinds:
        _kind(tree, kind)
    _leaves(tree.add("[cyan]epilogue[/]"), description.epilogue)
    out().print(tree)
    if usages:
        out().print(_experts(usages))


def _usages(name: str, model: Any, arguments: DatasetArguments) -> "list[Usage]":
    """What calibration data make of the experts of a model.

    Raises:
        ArgumentError: it has none that tokens are routed to.
    """
    from coldpress.calibration.dataset import load_batches
    from coldpress.experts import linearize_experts, measure_usage
    from coldpress.models import load_tokenizer

    refused = linearize_experts(model).refused
    found = measure_usage(model, load_batches(arguments, load_tokenizer(name, model), model=model))
    if not found:
        why = next((f": {name} {reason}" for name, reason in refused.items()), "")
        raise ArgumentError(
            f"--dataset shows what experts see, and a {type(model).__name__} has none that coldpress can watch{why}"
        )
    return found


def _experts(usages: "Sequence[Usage]") -> "Table":
    """A row for each mixture: numbers, and a bar for each expert."""
    from coldpress.report.table import grid
    from coldpress.report.words import in_count

    rows = []
    for one in usages:
        tokens = ", ".join(in_count(round(f(one.tokens))) for f in (min, median, max))
        worth = ", ".join(f"{f(one.saliency):.3g}" for f in (min, median, max))
        load = (tokens, f"{one.busiest():.2f}", str(one.unreached() or ""))
        rows.append((one.name, *load, _picture(one.tokens), worth, _picture(one.saliency)))
    columns = ("mixture", "tokens an expert", "busiest", "unreached", "load", "saliency", "by expert")
    return grid(columns, rows, numbers=("busiest", "unreached"))


def _picture(values: Sequence[float]) -> str:
    """A bar for each number, from none to the largest; where they are many, for the largest of several."""
    size = -(-len(values) // _WIDEST)
    parts = [max(values[start : start + size]) for start in range(0, len(values), size)]
    most = max(parts) or 1.0
    return "".join(" " if part <= 0 else _BARS[min(int(part / most * len(_BARS)), len(_BARS) - 1)] for part in parts)


def _kind(tree: "Tree", kind: "BlockKind") -> None:
    first, last = kind.blocks[0], kind.blocks[-1]
    where = first if first == last else f"{first} … {last}"
    branch = tree.add(f"[cyan]{len(kind.blocks)} × {kind.class_name}[/]  [dim]{where}[/]")
    if kind.dataflow is None:
        branch.add(f"[yellow]not probed: {kind.reason}[/]")
        return
    _flow(branch, kind.dataflow)


def _flow(branch: "Tree", flow: "Dataflow") -> None:
    inputs = branch.add(f"[bold]{len(flow.inputs)} distinct inputs[/]")
    _leaves(inputs, (", ".join(group) for group in flow.inputs))
    pairs = branch.add(f"[bold]{len(flow.pairs)} smoothing pairs[/]")
    _leaves(pairs, (_pair(pair) for pair in flow.pairs))
    _reasons(branch, "no producer absorbs a scale of", flow.unpaired)
    _reasons(branch, "refused as producer", flow.refused)
    if flow.unreached:
        _leaves(branch.add("[yellow]never reached by the probing input[/]"), flow.unreached)


def _pair(pair: "Pair") -> str:
    """`input_layernorm → q_proj, k_proj, v_proj`, with what is special and the certificate."""
    special = [
        *(["1 + w"] if pair.offset else []),
        *([] if pair.whole else [f"{len(pair.rows)} of {pair.width} rows"]),
        *([f"to the power {pair.degree}"] if pair.degree != 1 else []),
        *([f"{pair.num_experts} experts"] if pair.num_experts else []),
    ]
    words = f" [magenta]({', '.join(special)})[/]" if special else ""
    return f"{pair.producer} [green]→[/] {', '.join(pair.consumers)}{words} [dim]{pair.certificate:.0e}[/]"


def _reasons(branch: "Tree", title: str, reasons: dict[str, str]) -> None:
    if reasons:
        _leaves(branch.add(f"[yellow]{title}[/]"), (f"{name}: [dim]{why}[/]" for name, why in reasons.items()))


def _leaves(branch: Any, lines: Iterable[str]) -> None:
    for line in lines:
        branch.add(line)
