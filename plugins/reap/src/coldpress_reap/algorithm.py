"""Which experts of a mixture go: the saliency of each, and the choice.

Legend: T tokens, E experts; g the weight that a router gives an expert's output f, which is not weighted yet.

    reap   mean of g |f|     over the tokens that were sent to the expert
    man    mean of |f|       the same without the router
    msan   mean of |f|^2

p is the softmax over all experts, of which g are the largest: without the experts that go, those that stay get
p / (1 - m), where m is the mass of those that go.

REAP: Lasby, Lazarevich, Sinnadurai, Lie, Ioannou, Thangarasa, arXiv 2510.13999, equation 9.
Norms without the router: arXiv 2606.15716.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

CRITERIA = ("reap", "man", "msan")


def sums(table: Tensor) -> Tensor:
    """What saliencies are computed from: tokens, g |f|, |f| and |f|^2, each summed over tokens, [E, 4] float64.

    Args:
        table: g and |f| of each token and expert, [T, E, 2]; |f| is -1 where the token was not sent to the expert.
    """
    gate, norm = table.double().unbind(-1)  # [T, E] both
    sent = (norm >= 0).double()
    norm = norm * sent
    return torch.stack([sent.sum(0), (gate * norm).sum(0), norm.sum(0), norm.square().sum(0)], dim=-1)


def saliency(totals: Tensor, criterion: str) -> Tensor:
    """The saliency of each expert, [E] float64; 0 where no token was sent to it.

    Args:
        totals: `sums` of all tokens, [E, 4].
        criterion: one of `CRITERIA`.
    """
    count = totals[:, 0]
    total = totals[:, 1 + CRITERIA.index(criterion)]
    return torch.where(count > 0, total / count.clamp(min=1), torch.zeros_like(total))


def kept_experts(scores: Tensor, keep: int, *, groups: int = 1) -> list[int]:
    """The numbers of the experts that stay, in order; of equal ones the first.

    Args:
        scores: saliency of each expert, [E].
        keep: how many stay; a multiple of `groups`.
        groups: of experts side by side that a router chooses among first; as many stay of each.
    """
    chosen: list[int] = []
    for number, group in enumerate(scores.chunk(groups)):
        order = torch.sort(group, descending=True, stable=True).indices[: keep // groups]
        chosen += [number * len(group) + int(place) for place in order]
    return sorted(chosen)


def count_kept(experts: int, sparsity: float, groups: int) -> int:
    """How many of a layer's experts stay when a share of them goes; as many of each group."""
    return experts - groups * round(int(experts * sparsity) / groups)


def masses(gates: Tensor, every: Tensor) -> Tensor:
    """How much the softmax gives to each expert where another one is chosen, [E, E] float64: sum over tokens of g p^T.

    Args:
        gates: g of the experts that each token was sent to, 0 of the others, [T, E].
        every: p times anything that is the same for all experts, [T, E].
    """
    shares = every.double() / every.double().sum(1, keepdim=True)
    return gates.double().T @ shares


def gate_scales(mass: Tensor, kept: Sequence[int]) -> list[float]:
    """What undoes that gates grow when experts go: for each that stays the mean of 1 - m, weighted by its gate.

    A factor for each token would undo it exactly; one for each expert, which its weights can hold, does so on average.

    Args:
        mass: `masses` of all tokens, [E, E].
        kept: numbers of the experts that stay.
    """
    stay = mass[:, list(kept)].sum(1)  # [E]
    whole = mass.sum(1)  # [E]
    overall = float(stay[list(kept)].sum() / whole[list(kept)].sum().clamp(min=1e-30))
    return [float(stay[one] / whole[one]) if whole[one] > 0 else overall for one in kept]


def uneven(scores: Sequence[float]) -> bool:
    """Whether the experts differ at all in what a choice could go by."""
    return len(set(scores)) > 1
