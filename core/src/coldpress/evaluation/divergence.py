"""Divergence: how far the predictions of a model are from those of a reference."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from coldpress.errors import ArgumentError, NumericsError
from coldpress.evaluation.cluster import mean_of_windows
from coldpress.evaluation.perplexity import CHUNK
from coldpress.evaluation.windows import Tracker, batched, check_fits, cut_windows, logits_of, tracked
from coldpress.models.evaluating import evaluating

_KL = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "99.9 %": 0.999, "largest": 1.0}
_DELTA_P = {"0.1 %": 0.001, "1 %": 0.01, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "99 %": 0.99, "99.9 %": 0.999}


@frozen
class Divergence:
    """What was measured.

    Attributes:
        kl: mean of KL(reference || model) over tokens, in nats.
        kl_standard_error: of `kl`; NaN when there was only one window.
        top1_agreement: share of tokens for which both models hold the same token most likely.
        tokens: that were predicted.
        top1_standard_error: of `top1_agreement`; NaN when there was only one window.
        kl_percentiles: of the tokens' KL, in nats: `median`, `90 %`, `99 %`, `99.9 %`, `largest`.
        delta_p: mean change of the probability of the token that follows in the text, model minus reference.
        delta_p_standard_error: of `delta_p`; NaN when there was only one window.
        delta_p_percentiles: of that change: `0.1 %`, `1 %`, `5 %`, `median`, `95 %`, `99 %`, `99.9 %`; noise is
            symmetric around 0, damage has a longer tail below.
        log_ratio: ln of the model's perplexity over the reference's.
        log_ratio_standard_error: of `log_ratio`, from paired windows, so far smaller than those of two perplexities;
            NaN when there was only one window.
    """

    kl: float
    kl_standard_error: float
    top1_agreement: float
    tokens: int
    top1_standard_error: float
    kl_percentiles: Mapping[str, float]
    delta_p: float
    delta_p_standard_error: float
    delta_p_percentiles: Mapping[str, float]
    log_ratio: float
    log_ratio_standard_error: float


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
            logits, expected = logits_of(model, ids), logits_of(reference, ids)
            if logits.shape != expected.shape:
                raise ArgumentError(
                    f"the models have different vocabularies, {logits.shape[-1]} and {expected.shape[-1]} tokens: they "
                    "cannot be compared token by token"
                )
            rows = zip(logits, expected.to(logits.device), ids.to(logits.device), strict=True)
            found += [_compare(*row).cpu() for row in rows]
    return _summary(found)


def _summary(found: list[Tensor]) -> Divergence:
    """What the tokens of all windows come to.

    Args:
        found: what `_compare` says of each window, [4, T - 1].

    Raises:
        NumericsError: a number is NaN or Inf.
    """
    counts = torch.tensor([part.shape[1] for part in found])  # [k]
    sums = torch.stack([part.sum(1) for part in found])  # [k, 4]
    if not sums.isfinite().all():
        raise NumericsError("a model gives NaN or Inf to the text: its weights are not sound")
    kl, error = mean_of_windows(sums[:, 0], counts)
    agreement, spread = mean_of_windows(sums[:, 1], counts)
    change, change_error = mean_of_windows(sums[:, 2], counts)
    ratio, ratio_error = mean_of_windows(sums[:, 3], counts)
    tokens = torch.cat(found, dim=1)  # [4, T]
    return Divergence(
        kl=kl,
        kl_standard_error=error,
        top1_agreement=agreement,
        tokens=int(counts.sum()),
        top1_standard_error=spread,
        kl_percentiles=_percentiles(tokens[0], _KL),
        delta_p=change,
        delta_p_standard_error=change_error,
        delta_p_percentiles=_percentiles(tokens[2], _DELTA_P),
        log_ratio=ratio,
        log_ratio_standard_error=ratio_error,
    )


def _percentiles(values: Tensor, shares: Mapping[str, float]) -> dict[str, float]:
    """Of values, [T], the smallest that so large a share of them is no larger than."""
    ordered = values.sort().values
    last = len(ordered) - 1
    return {name: float(ordered[min(last, max(0, math.ceil(q * len(ordered)) - 1))]) for name, q in shares.items()}


def _compare(logits: Tensor, expected: Tensor, ids: Tensor) -> Tensor:
    """For each predicted token of a window KL(expected || found), whether first choices agree, delta-p, and the
    difference of negative log-likelihoods, model minus reference.

    Args:
        logits: of the model, [S, vocabulary].
        expected: logits of the reference, [S, vocabulary].
        ids: the window, [S].

    Returns:
        [4, S - 1] float64.
    """
    found = []
    chunks = (torch.split(part, CHUNK) for part in (logits[:-1], expected[:-1], ids[1:]))
    for part, target, token in zip(*chunks, strict=True):
        log_q, log_p = part.float().log_softmax(-1), target.float().log_softmax(-1)  # [chunk, vocabulary]
        # Both may be -inf for a token that neither ever says; 0 * (-inf + inf) is 0 there.
        term = torch.where(log_p == -torch.inf, 0.0, log_p.exp() * (log_p - log_q))
        right_q, right_p = (part.gather(1, token[:, None])[:, 0] for part in (log_q, log_p))  # [chunk] each
        same = part.argmax(-1) == target.argmax(-1)
        kl = term.sum(-1).clamp(min=0)
        found.append(
            torch.stack(
                [kl.double(), same.double(), (right_q.exp() - right_p.exp()).double(), (right_p - right_q).double()]
            )
        )
    return torch.cat(found, dim=1)
