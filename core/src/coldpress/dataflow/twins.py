"""Layers that the probing input never reached, such as experts that no token chose, follow their twins.

experts.0.up_proj reads the norm  ->  experts.7.up_proj, which never ran, reads it too
experts.0: up_proj -> down_proj   ->  experts.7: the same pair
"""

from attrs import evolve
from torch import nn

from coldpress.dataflow.findings import Findings
from coldpress.dataflow.pair import Pair
from coldpress.dataflow.workbench import Workbench
from coldpress.stage import input_dim


def follow_twins(bench: Workbench, findings: Findings, silent: tuple[str, ...]) -> None:
    """Extend the pairs to silent twins; refuse norms that a silent layer without a twin might read."""
    waiting = set(silent)
    extended: list[Pair] = []
    for pair in findings.pairs:
        with_twins = _with_twin_consumers(bench.block, pair, waiting)
        extended += [with_twins, *_twin_pairs(bench.block, with_twins, waiting)]
    findings.pairs = extended
    reached = {m.name for p in extended for m in p.members}
    lost = sorted(n for n in waiting - reached if not any(_same_place(n, r) for r in reached))
    for pair in extended:
        readers = [n for n in lost if pair.kind == "norm" and _reads(bench.layers()[n], pair.width)]
        if readers:
            reason = "never ran on the probing input, or on zeros, and might read it: probe with one that reaches it"
            findings.refuse(pair, f"{', '.join(readers)} {reason}")


def _reads(layer: nn.Module, width: int) -> bool:
    return layer.get_parameter("weight").shape[input_dim(layer)] == width


def _same_place(a: str, b: str) -> bool:
    """Whether two names differ in exactly one number."""
    first, second = a.split("."), b.split(".")
    if len(first) != len(second):
        return False
    differ = [(x, y) for x, y in zip(first, second, strict=True) if x != y]
    return len(differ) == 1 and differ[0][0].isdigit() and differ[0][1].isdigit()


def _with_twin_consumers(block: nn.Module, pair: Pair, waiting: set[str]) -> Pair:
    """Add silent twins of the consumers, unless the producer itself lives in the list of twins."""
    added = []
    taken = set(pair.consumers)
    for member in pair.members:
        for name in sorted(waiting - taken):
            if _same_place(member.name, name) and not _shares_index(pair.producer, member.name, name):
                site = evolve(member.site, parameter=member.site.parameter.replace(member.name, name, 1))
                if block.get_parameter(site.parameter).shape == block.get_parameter(member.site.parameter).shape:
                    added.append(evolve(member, name=name, site=site))
                    taken.add(name)
    return evolve(pair, members=pair.members + tuple(added)) if added else pair


def _shares_index(producer: str, member: str, twin: str) -> bool:
    """Whether the producer lies below the element of the list in which member and twin differ."""
    first, second = member.split("."), twin.split(".")
    at = next(i for i, (x, y) in enumerate(zip(first, second, strict=True)) if x != y)
    return producer.split(".")[: at + 1] == first[: at + 1]


def _twin_pairs(block: nn.Module, pair: Pair, waiting: set[str]) -> list[Pair]:
    """The same pair inside elements of the list where both ends are silent."""
    found = []
    for name in sorted(waiting):
        if not _same_place(pair.producer, name) or len(pair.members) != 1:
            continue
        member = pair.members[0]
        old, new = _differing_prefix(pair.producer, name)
        twin = new + member.name[len(old) :] if member.name.startswith(old + ".") else ""
        if twin in waiting:
            sites = tuple(evolve(s, parameter=new + s.parameter[len(old) :]) for s in pair.sites)
            site = evolve(member.site, parameter=new + member.site.parameter[len(old) :])
            found.append(evolve(pair, producer=name, sites=sites, members=(evolve(member, name=twin, site=site),)))
    return found


def _differing_prefix(a: str, b: str) -> tuple[str, str]:
    first, second = a.split("."), b.split(".")
    at = next(i for i, (x, y) in enumerate(zip(first, second, strict=True)) if x != y)
    return ".".join(first[: at + 1]), ".".join(second[: at + 1])
