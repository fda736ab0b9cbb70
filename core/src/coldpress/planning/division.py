"""What several ranks make of the cost of a stage: what is divided, and what is exchanged."""

import json
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

from attrs import fields_dict, frozen

from coldpress.distributed import Ranks, Share
from coldpress.distributed.share import dealt
from coldpress.errors import ArgumentError
from coldpress.planning.rates import Rates
from coldpress.spelling import suggest

_CHUNK = 4096  # tokens that a Gram matrix is summed by


@frozen
class Division:
    """How a run is divided.

    Attributes:
        ranks: how many.
        share: part of the tokens that the rank with most of them runs.
    """

    ranks: int = 1
    share: float = 1.0

    @classmethod
    def of(cls, ranks: int, tokens: Sequence[int]) -> "Division":
        """The division of batches of so many tokens."""
        if ranks == 1 or not tokens:
            return cls(ranks, 1.0)
        share = Share.of(Ranks(0, ranks), tokens)
        own = [0] * ranks
        for index, count in enumerate(tokens):
            own[share.owner(index)] += count
        return cls(ranks, max(own) / max(1, sum(own)))

    def busiest(self, seconds: Sequence[float]) -> float:
        """The seconds of the rank that solves longest, of problems that take so many each."""
        load = [0.0] * self.ranks
        for one, owner in zip(seconds, dealt(seconds, self.ranks), strict=True):
            load[owner] += one
        return max(load)

    def exchanged(self, statistics: Sequence[int], codes: int, tokens: float) -> int:
        """Bytes that one rank receives in a stage, at most.

        Args:
            statistics: bytes of those of each input.
            codes: bytes of codes and scales.
            tokens: of the calibration data.
        """
        if self.ranks == 1:
            return 0
        chunks, others = ceil(tokens / _CHUNK), (self.ranks - 1) / self.ranks
        sums = sum(statistics) * chunks * others / max(1, min(self.ranks, len(statistics)))
        return int(sums + (sum(statistics) + codes) * others)


ALONE = Division()
"""A run of one process."""


def read_profile(path: Path) -> Rates:
    """The rates of a machine from a JSON file.

    Raises:
        ArgumentError: there is no such file, or a rate is missing, unknown or not a number above 0.
    """
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"device profile {path}: it cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise ArgumentError(f"device profile {path}: it must be a table of rates, got {type(found).__name__}")
    known = fields_dict(Rates)
    for name in found.keys() - known.keys():
        raise ArgumentError(f"device profile {path}: {name!r} is no rate{suggest(name, known)}")
    for name in known.keys() - found.keys():
        raise ArgumentError(f"device profile {path}: {name} is missing")
    for name, value in found.items():
        sound = isinstance(value, str) if name == "device" else isinstance(value, int | float) and value > 0
        if not sound or isinstance(value, bool):
            words = "a name" if name == "device" else "a number above 0"
            raise ArgumentError(f"device profile {path}: {name} is {value!r}, and must be {words}")
    return Rates(**found)
