"""Divergence: how far the predictions of a model are from those of a reference."""

from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from coldpress.errors import ArgumentError, NumericsError
from coldpress.evaluation.cluster import mean_of_windows
from coldpress.evaluation.perplexity import CHUNK
from coldpress.evaluation.windows import Tracker, batched, check_fits, cut_windows, logits_of, tracked
from coldpress.models.evaluating import evaluating


@frozen
class Divergence:
    """What was measured.

    Attributes:
        kl: mean of KL(reference || model) over tokens, in nats.
        kl_standard_error: of `kl`; NaN when there was only one window.
        top1_agreement: share of tokens for which both models hold the same token most likely.
        tokens: that were predicted.
    """

    kl: float
    kl_standard_error: float
    top1_agreement: float
    tokens: int


def divergence(
    model: Any,
    reference: Any,
    tokenizer: Any,
    text: str | Sequence[str] | None = None,
    *,
    window: int = 512,
    max_tokens: int | None = None,
    batch_size: int = 1,
    progress: Tracker | None = None,
) -> Divergence:
    """Measure how far the predictions of a model are from those of a reference, token by token of a text.

    The windows are those of `perplexity`.

    Args:
        model: a causal language model, say a compressed one.
        reference: another one with the same vocabulary, say the original.
        tokenizer: of both.
        text: a text or several; None takes the held-out half of `coldpress/short`.
        window: tokens that a model sees at once.
        max_tokens: tokens of the text that are used; None uses all.
        batch_size: windows that are run together.
        progress: shows how far it is.

    Raises:
        ArgumentError: the models have different vocabularies, or the text has fewer than two tokens or does not fit.
        NumericsError: a model says NaN or Inf.
    """
    windows = cut_windows(tokenizer, text, window=window, max_tokens=max_tokens)
    check_fits(model, windows)
    check_fits(reference, windows)
    found: list[Tensor] = []
    with evaluating(model, reference), torch.no_grad():
        for ids in tracked(batched(windows, batch_size), progress, "divergence"):
            said, wanted = logits_of(model, ids), logits_of(reference, ids)
            if said.shape != wanted.shape:
                raise ArgumentError(
                    f"the models have different vocabularies, {said.shape[-1]} and {wanted.shape[-1]} tokens: they "
                    "cannot be compared token by token"
                )
            found += [_compare(*pair) for pair in zip(said, wanted.to(said.device), strict=True)]
    sums, counts = torch.stack(found).cpu(), torch.tensor([len(part) - 1 for part in windows])  # [k, 2], [k]
    if not sums.isfinite().all():
        raise NumericsError("a model gives NaN or Inf to the text: its weights are not sound")
    kl, error = mean_of_windows(sums[:, 0], counts)
    agreement, _ = mean_of_windows(sums[:, 1], counts)
    return Divergence(kl, error, agreement, int(counts.sum()))


def _compare(said: Tensor, wanted: Tensor) -> Tensor:
    """Summed KL(wanted || said) and number of equal first choices of one window, [2] float64, from [S, vocabulary]."""
    kl = said.new_zeros((), dtype=torch.float64)
    same = torch.zeros_like(kl)
    for part, target in zip(torch.split(said[:-1], CHUNK), torch.split(wanted[:-1], CHUNK), strict=True):
        log_q, log_p = part.float().log_softmax(-1), target.float().log_softmax(-1)  # [chunk, vocabulary]
        # Both may be -inf for a token that neither ever says; 0 * (-inf + inf) is 0 there.
        term = torch.where(log_p == -torch.inf, 0.0, log_p.exp() * (log_p - log_q))
        kl += term.sum(-1).clamp(min=0).double().sum()
        same += (part.argmax(-1) == target.argmax(-1)).sum()
    return torch.stack([kl, same])
