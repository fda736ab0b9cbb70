"""Smoothing pairs by experiment: which producers can absorb a per-channel scale of which layers.

    for each candidate producer:
        scale its output channels by distinct factors, run the block      -> consumers and channel maps
        fold random scales into producer and consumers, run the block     -> the certificate
    for each layer still without a producer:
        find the rows of fused producers that feed it (`rows`), and try these

No names, no table of architectures: what is accepted is what leaves every output of the block as it was.
"""

from typing import Any

from attrs import evolve, field, frozen
from torch import nn

from coldpress.dataflow.call import Call
from coldpress.dataflow.certificate import TOLERANCE
from coldpress.dataflow.detect import distinct_factors, find_consumers
from coldpress.dataflow.findings import Findings
from coldpress.dataflow.inputs import group_inputs, silent_layers
from coldpress.dataflow.pair import Consumer, Pair
from coldpress.dataflow.producer import candidates
from coldpress.dataflow.rows import feeding_rows
from coldpress.dataflow.sharing import Shared
from coldpress.dataflow.unreached import infer_unreached
from coldpress.dataflow.workbench import Workbench

ATTEMPTS = 3


@frozen(eq=False)
class Dataflow:
    """What probing found out about a block.

    Attributes:
        inputs: groups of linear layers that read the very same tensor.
        pairs: producers with their consumers, in the order of the block's modules.
        refused: producer -> why nothing may be folded into it although layers see its scale.
        unpaired: linear layer -> why no producer can absorb its scale.
        unreached: linear layers that the call never reached.
    """

    inputs: tuple[tuple[str, ...], ...]
    pairs: tuple[Pair, ...]
    refused: dict[str, str] = field(factory=dict)
    unpaired: dict[str, str] = field(factory=dict)
    unreached: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "inputs": [list(group) for group in self.inputs],
            "pairs": [p.to_dict() for p in self.pairs],
            "refused": dict(self.refused),
            "unpaired": dict(self.unpaired),
            "unreached": list(self.unreached),
        }


def find_pairs(block: nn.Module, call: Call, *, shared: Shared | None = None, seed: int = 0) -> Dataflow:
    """Probe a block.

    Args:
        block: never touched; a float64 copy of it is.
        call: what the block is called with (`capture`), a few tokens of at least one sequence.
        shared: parameters that live elsewhere in the model too, see `shared_parameters`.
        seed: of the factors.

    Raises:
        ModelError: the block does not run alone in float64.
    """
    return probe(Workbench(block, call, seed=seed), shared or {})


def probe(bench: Workbench, shared: Shared) -> Dataflow:
    """`find_pairs` of a block that lies on the bench."""
    findings = Findings(shared=shared)
    whole = [_best([try_producer(bench, c) for c in alternatives]) for alternatives in candidates(bench)]
    for pair in whole:
        findings.judge(pair)
    fused = [p for p in whole if not p.members and p.kind != "norm"]
    if fused:
        for rows in feeding_rows(bench, fused, _without_producer(bench, findings.pairs)):
            findings.judge(try_producer(bench, rows))
    unreached = silent_layers(bench)
    infer_unreached(bench, findings, unreached)
    refused = {producer: r.reason for producer, r in findings.refused.items()}
    unpaired = _reasons(bench, findings, unreached)
    return Dataflow(group_inputs(bench), tuple(findings.pairs), refused, unpaired, unreached)


def try_producer(bench: Workbench, candidate: Pair) -> Pair:
    """The candidate with its consumers and certificate; without members where no input is a known multiple.

    Consumers behind a router or a gate show themselves only once those before them compensate (a token scaled by
    its router's score), so the search continues, with all known members compensating, until the certificate holds.
    """
    pair = candidate
    for _ in range(ATTEMPTS):
        found = _more_consumers(bench, pair)
        if found is None:
            continue  # experts were chosen otherwise
        members, degree = found
        if not members:
            break
        pair = _stacked(bench, evolve(pair, members=pair.members + tuple(members), degree=degree))
        pair = evolve(pair, certificate=bench.certify(pair))
        if pair.certificate <= TOLERANCE:
            break
    return pair


def _more_consumers(bench: Workbench, pair: Pair) -> tuple[list[Consumer], int] | None:
    factors = distinct_factors(len(pair.rows), bench.generator)
    found = find_consumers(bench, bench.run_scaled(pair, factors).uses, factors)
    if found is None:
        return None
    known = {m.site for m in pair.members}
    members = [m for m in found[0] if m.site not in known]
    return (members, found[1]) if not known or found[1] == pair.degree else ([], pair.degree)


def _stacked(bench: Workbench, pair: Pair) -> Pair:
    """One scale for all experts where a consumer has not the producer's number of experts."""
    shapes = [bench.block.get_parameter(m.site.parameter).shape for m in pair.members]
    alike = pair.num_experts is not None and all(len(s) == 3 and s[0] == pair.num_experts for s in shapes)
    return pair if alike else evolve(pair, num_experts=None)


def _best(tried: list[Pair]) -> Pair:
    """The alternative with the smallest certificate; one without consumers only if all are."""
    return min(tried, key=lambda p: (not p.members, p.certificate if p.members else 0.0))


def _without_producer(bench: Workbench, pairs: list[Pair]) -> list[str]:
    """Parameters, in order of use, that no pair has for a consumer."""
    served = {m.site.parameter for p in pairs for m in p.members}
    return list(dict.fromkeys(u.parameter for u in bench.before.uses if u.parameter not in served))


def _reasons(bench: Workbench, findings: Findings, unreached: tuple[str, ...]) -> dict[str, str]:
    """Why each linear layer without a producer has none."""
    served = {name for p in findings.pairs for name in p.consumers}
    reasons: dict[str, str] = {}
    for name in bench.layers():
        if name in served:
            continue
        blocked = [f"{p}: {r.reason}" for p, r in findings.refused.items() if name in r.readers]
        if name in unreached:
            reasons[name] = "never ran on the probing input, or on zeros only"
        else:
            reasons[name] = blocked[0] if blocked else "no norm or linear layer scales its input channel by channel"
    return reasons
