"""`coldpress trace`: the stages of a model, which layers share an input, and who can absorb a per-channel scale."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coldpress.cli.console import out, print_json
from coldpress.cli.option import Device, Json, option

if TYPE_CHECKING:
    from rich.tree import Tree

    from coldpress.dataflow import BlockKind, Dataflow, Pair

_MODEL = "A folder, a hub id, or a file or name that a source reads."


def trace(
    model: Annotated[str, typer.Argument(help=_MODEL, show_default=False)],
    *,
    sequential_targets: Annotated[
        list[str] | None,
        option(
            None, "--sequential-targets", "BLOCK", "Class, name or re:pattern of a block; repeatable.", shown="found"
        ),
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Show the stages of a model, the inputs that layers share, and its verified smoothing mappings.

    One block of each kind is probed with random factors in float64; nothing is known of any architecture by name.
    """
    from coldpress.dataflow import describe
    from coldpress.models import load_model

    subject = load_model(model, dtype="auto", device=device)
    description = describe(subject, targets=sequential_targets)
    if as_json:
        print_json(description.to_dict())
        return
    from rich.tree import Tree

    tree = Tree(f"[bold]{description.class_name}[/]")
    _leaves(tree.add("[cyan]prologue[/]"), description.prologue)
    for kind in description.kinds:
        _kind(tree, kind)
    _leaves(tree.add("[cyan]epilogue[/]"), description.epilogue)
    out().print(tree)


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
