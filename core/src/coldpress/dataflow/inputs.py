"""Distinct inputs: which linear layers get the very same tensor."""

from torch import nn

from coldpress.dataflow.call import Call
from coldpress.dataflow.product_trace import Use
from coldpress.dataflow.workbench import Workbench


def distinct_inputs(block: nn.Module, call: Call) -> tuple[tuple[str, ...], ...]:
    """Groups of linear layers that read one tensor, in the order in which the tensors are read."""
    bench = Workbench(block, call)
    return group_inputs(bench)


def group_inputs(bench: Workbench) -> tuple[tuple[str, ...], ...]:
    """`distinct_inputs` of a block that lies on the bench already; layers that never ran are in no group."""
    layers = bench.layers()
    seen: dict[str, list[tuple[int, ...]]] = {}
    for use in bench.before.uses:
        seen.setdefault(bench.name(use.parameter), []).append(use.identity)
    groups: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for name, identities in seen.items():
        if name in layers:
            groups.setdefault(tuple(identities), []).append(name)
    return tuple(tuple(g) for g in groups.values())


def silent_layers(bench: Workbench) -> tuple[str, ...]:
    """Linear layers of the block that its call never reached, or with nothing but zeros, as it may reach experts."""
    ran = {bench.name(u.parameter) for u in bench.before.uses if u.input.any()}
    return tuple(n for n in bench.layers() if n not in ran)


def uses_by_site(uses: tuple[Use, ...]) -> dict[tuple[str, int], list[Use]]:
    """The uses of every (parameter, input dimension)."""
    found: dict[tuple[str, int], list[Use]] = {}
    for use in uses:
        found.setdefault((use.parameter, use.dim), []).append(use)
    return found
