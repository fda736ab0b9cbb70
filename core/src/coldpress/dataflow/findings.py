"""What probing has accepted and refused so far."""

from attrs import define, field, frozen

from coldpress.dataflow.certificate import TOLERANCE
from coldpress.dataflow.pair import Pair
from coldpress.dataflow.sharing import Shared, unsound


@frozen
class Refusal:
    """Why a producer must not be scaled.

    Attributes:
        readers: who sees its scale.
        reason: in words, for people.
    """

    readers: tuple[str, ...]
    reason: str


@define
class Findings:
    """Pairs that hold and producers that do not.

    Attributes:
        shared: parameters that live outside the block too.
        pairs: accepted, in the order in which they were judged.
        refused: by producer.
    """

    shared: Shared
    pairs: list[Pair] = field(factory=list)
    refused: dict[str, Refusal] = field(factory=dict)

    def judge(self, pair: Pair) -> None:
        """Accept or refuse a pair by its certificate; one that nothing reads is neither."""
        if not pair.members:
            return
        reason = unsound(pair, self.shared)
        if reason is None and pair.certificate > TOLERANCE:
            reason = (
                f"it feeds {', '.join(pair.consumers)} and something that cannot take the scale back "
                f"(the residual stream, a router, an output): folding changes the block by {pair.certificate:.1e}"
            )
        if reason:
            self.refuse(pair, reason)
        else:
            self.pairs.append(pair)
            self.refused.pop(pair.producer, None)

    def refuse(self, pair: Pair, reason: str) -> None:
        """Note that a producer must not be scaled, and take it out of the pairs."""
        self.pairs = [p for p in self.pairs if p is not pair]
        self.refused[pair.producer] = Refusal(pair.consumers, reason)
