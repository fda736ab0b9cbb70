"""A smoothing pair: who can give a per-channel scale to whom, exactly.

producer ── channel j times 1/s[j] ──> (anything homogeneous) ──> consumers: column c times s[channels[c]]
"""

from typing import Any, Literal

import torch
from attrs import evolve, field, frozen
from torch import Tensor

Kind = Literal["norm", "linear", "experts"]


@frozen
class Site:
    """Where a scale enters a parameter.

    Attributes:
        parameter: its name in the block.
        dim: the dimension that is scaled.
        offset: 1 where the module computes (1 + w) x, else 0.
    """

    parameter: str
    dim: int
    offset: int = 0


@frozen(kw_only=True, eq=False)
class Consumer:
    """Who has the scale undone in its columns.

    Attributes:
        name: the linear layer, or the parameter where its owner is no linear layer (routers, stacks of experts).
        site: its input columns.
        channels: for each input channel the index of the pair's scale that it sees, -1 where it sees none, int64 [I].
    """

    name: str
    site: Site
    channels: Tensor


@frozen(kw_only=True, eq=False)
class Pair:
    """A producer that can absorb a per-channel scale of its consumers.

    Attributes:
        producer: name of the norm, linear layer or stack of experts.
        kind: what the producer is.
        offset: 1 where a norm computes (1 + w) x, else 0.
        rows: the producer's output channels that scale, int64 [C]; element j of a scale belongs to channel rows[j].
        width: how many output channels the producer has; more than C where it is fused (v rows of a qkv layer).
        members: all that read the producer.
        degree: consumers see the producer's factor to this power (2 behind a squared ReLU).
        num_experts: stacks of experts take one scale per expert, [E, C]; None where the scale is [C].
        certificate: largest relative change of any output of the block after folding random scales, in float64.
        sites: the producer's parameters that scale.
    """

    producer: str
    kind: Kind
    offset: int
    rows: Tensor = field(repr=False)
    width: int
    members: tuple[Consumer, ...] = field(repr=False)
    degree: int = 1
    num_experts: int | None = None
    certificate: float = float("nan")
    sites: tuple[Site, ...] = field(repr=False)

    @property
    def consumers(self) -> tuple[str, ...]:
        """Names of all that read the producer."""
        return tuple(m.name for m in self.members)

    @property
    def whole(self) -> bool:
        """Whether every output channel of the producer scales."""
        return len(self.rows) == self.width

    def channels(self, consumer: str) -> Tensor:
        """The channel map of one consumer, int64 [I]; see `Consumer`."""
        return next(m.channels for m in self.members if m.name == consumer)

    def spread(self, scale: Tensor, consumer: str) -> Tensor:
        """What each input channel of a consumer sees of a scale, [..., C] -> [..., I]; 1 where it sees nothing."""
        return spread(scale, self.channels(consumer))

    def gather(self, values: Tensor, consumer: str) -> Tensor:
        """The largest value over the input channels that see each element of the scale, non-negative [I] -> [C].

        For maxima such as absmax under grouped-query attention, where one v channel feeds several of o's columns.
        """
        channels = self.channels(consumer).to(values.device)  # [I]
        seen = channels >= 0
        out = values.new_zeros(len(self.rows))
        return out.scatter_reduce(0, channels[seen], values[seen], "amax")

    def within(self, prefix: str) -> "Pair":
        """The same pair, named from the module that holds the block as `prefix`."""
        head = prefix + "." if prefix else ""
        members = tuple(
            evolve(m, name=head + m.name, site=evolve(m.site, parameter=head + m.site.parameter)) for m in self.members
        )
        sites = tuple(evolve(s, parameter=head + s.parameter) for s in self.sites)
        return evolve(self, producer=head + self.producer, members=members, sites=sites)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; rows and channel maps as runs."""
        return {
            "producer": self.producer,
            "kind": self.kind,
            "convention": "1 + w" if self.offset else "w",
            "rows": "all" if self.whole else runs(self.rows),
            "width": self.width,
            "consumers": {m.name: "same" if _identical(m.channels) else runs(m.channels) for m in self.members},
            "degree": self.degree,
            "num_experts": self.num_experts,
            "certificate": self.certificate,
        }


def spread(scale: Tensor, channels: Tensor) -> Tensor:
    """`scale[..., channels]` with 1 where a channel is -1: [..., C], [I] -> [..., I]."""
    padded = torch.cat([scale, torch.ones_like(scale[..., :1])], dim=-1)  # [..., C + 1]; index -1 is the last
    return padded[..., channels.to(scale.device)]


def runs(index: Tensor) -> list[list[int]]:
    """Stretches [first, last] of consecutive numbers, or of -1, in their order."""
    found: list[list[int]] = []
    for value in index.tolist():
        if found and value == (found[-1][1] + 1 if found[-1][1] >= 0 else -1):
            found[-1][1] = value
        else:
            found.append([value, value])
    return found


def _identical(channels: Tensor) -> bool:
    return bool(torch.equal(channels, torch.arange(len(channels))))
