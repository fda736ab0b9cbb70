"""Layers that the probing input never reached, such as experts that no token chose: inferred from siblings that it did.

experts.0.up_proj reads the norm  ->  experts.7.up_proj, which never ran, reads it too
experts.0: up_proj -> down_proj   ->  experts.7: the same pair
"""

from attrs import evolve
from torch import nn

from coldpress.dataflow.findings import Findings
from coldpress.dataflow.pair import Pair
from coldpress.dataflow.workbench import Workbench
from coldpress.stage import input_dim


def infer_unreached(bench: Workbench, findings: Findings, unreached: tuple[str, ...]) -> None:
    """Extend the pairs to unreached siblings; refuse norms that an unreached layer without a sibling might read."""
    left = set(unreached)
    extended: list[Pair] = []
    inferred: set[str] = set()  # every sibling that was reached has a pair to infer one from
    for pair in findings.pairs:
        with_siblings = _with_siblings(bench.block, pair, left)
        siblings = [one for one in _sibling_pairs(bench.block, with_siblings, left) if one.producer not in inferred]
        extended += [with_siblings, *siblings]
        inferred |= {sibling.producer for sibling in siblings}
    findings.pairs = extended
    reached = {m.name for p in extended for m in p.members}
    unknown = sorted(n for n in left - reached if not any(same_place(n, r) for r in reached))
    for pair in extended:
        readers = [n for n in unknown if pair.kind == "norm" and _reads(bench.layers()[n], pair.width)]
        if readers:
            reason = "never ran on the probing input, or on zeros, and might read it: probe with one that reaches it"
            findings.refuse(pair, f"{', '.join(readers)} {reason}")


def _reads(layer: nn.Module, width: int) -> bool:
    return layer.get_parameter("weight").shape[input_dim(layer)] == width


def same_place(a: str, b: str) -> bool:
    """Whether two names differ in exactly one number."""
    first, second = a.split("."), b.split(".")
    if len(first) != len(second):
        return False
    differ = [(x, y) for x, y in zip(first, second, strict=True) if x != y]
    return len(differ) == 1 and differ[0][0].isdigit() and differ[0][1].isdigit()


def _with_siblings(block: nn.Module, pair: Pair, unreached: set[str]) -> Pair:
    """Add unreached siblings of the consumers, unless the producer itself lives in their list."""
    added = []
    taken = set(pair.consumers)
    for member in pair.members:
        for name in sorted(unreached - taken):
            if same_place(member.name, name) and not _shares_index(pair.producer, member.name, name):
                site = evolve(member.site, parameter=member.site.parameter.replace(member.name, name, 1))
                if block.get_parameter(site.parameter).shape == block.get_parameter(member.site.parameter).shape:
                    added.append(evolve(member, name=name, site=site))
                    taken.add(name)
    return evolve(pair, members=pair.members + tuple(added)) if added else pair


def _shares_index(producer: str, member: str, sibling: str) -> bool:
    """Whether the producer lies below the element of the list in which member and sibling differ."""
    first, second = member.split("."), sibling.split(".")
    at = next(i for i, (x, y) in enumerate(zip(first, second, strict=True)) if x != y)
    return producer.split(".")[: at + 1] == first[: at + 1]


def _sibling_pairs(block: nn.Module, pair: Pair, unreached: set[str]) -> list[Pair]:
    """The same pair inside elements of the list where both ends are unreached."""
    found = []
    for name in sorted(unreached):
        if not same_place(pair.producer, name) or len(pair.members) != 1:
            continue
        member = pair.members[0]
        old, new = _differing_prefix(pair.producer, name)
        sibling = new + member.name[len(old) :] if member.name.startswith(old + ".") else ""
        if sibling in unreached:
            sites = tuple(evolve(s, parameter=new + s.parameter[len(old) :]) for s in pair.sites)
            site = evolve(member.site, parameter=new + member.site.parameter[len(old) :])
            found.append(evolve(pair, producer=name, sites=sites, members=(evolve(member, name=sibling, site=site),)))
    return found


def _differing_prefix(a: str, b: str) -> tuple[str, str]:
    first, second = a.split("."), b.split(".")
    at = next(i for i, (x, y) in enumerate(zip(first, second, strict=True)) if x != y)
    return ".".join(first[: at + 1]), ".".join(second[: at + 1])
