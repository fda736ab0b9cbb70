"""Perplexity: exp of the mean negative log-likelihood per token."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from torch.nn import functional

from coldpress.errors import NumericsError
from coldpress.evaluation.cluster import mean_of_windows
from coldpress.evaluation.windows import Tracker, batched, check_fits, cut_windows, logits_of, tracked
from coldpress.models.evaluating import evaluating

CHUNK = 128  # tokens whose log-probabilities are held at once: 25 MB in float32 for a vocabulary of 49,152


@frozen
class Perplexity:
    """What was measured.

    Attributes:
        value: exp of the mean negative log-likelihood of a token.
        standard_error: of `value`; NaN when there was only one window.
        tokens: that were predicted.
    """

    value: float
    standard_error: float
    tokens: int


def perplexity(
    model: Any,
    tokenizer: Any,
    text: str | Sequence[str] | None = None,
    *,
    window: int = 512,
    max_tokens: int | None = None,
    batch_size: int = 1,
    progress: Tracker | None = None,
) -> Perplexity:
    """Measure the perplexity of a model on a text.

    The text is cut into windows that do not overlap, each read on its own; every token but the first of a window is
    predicted, and the mean is over all predicted tokens.

    Args:
        model: a causal language model.
        tokenizer: of the model.
        text: a text or several; None takes the held-out half of `coldpress/short`.
        window: tokens that the model sees at once.
        max_tokens: tokens of the text that are used; None uses all.
        batch_size: windows that are run together.
        progress: shows how far it is.

    Raises:
        ArgumentError: the text has fewer than two tokens, or does not fit the model.
        NumericsError: the model says NaN or Inf.
    """
    windows = cut_windows(tokenizer, text, window=window, max_tokens=max_tokens)
    check_fits(model, windows)
    sums: list[Tensor] = []
    with evaluating(model), torch.no_grad():
        for ids in tracked(batched(windows, batch_size), progress, "perplexity"):
            sums += [_loss(logits, row) for logits, row in zip(logits_of(model, ids), ids, strict=True)]
    losses, counts = torch.stack(sums).cpu(), torch.tensor([len(part) - 1 for part in windows])
    if not losses.isfinite().all():
        first = int((~losses.isfinite()).nonzero()[0])
        raise NumericsError(f"the model gives NaN or Inf to window {first} of the text: its weights are not sound")
    mean, error = mean_of_windows(losses, counts)
    value = math.exp(mean) if mean < 700 else math.inf
    return Perplexity(value, value * error, int(counts.sum()))  # delta method: d exp(m) = exp(m) dm


def _loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Summed negative log-likelihood of the tokens of one window, float64, from logits [S, vocabulary]."""
    predicted, expected = logits[:-1], ids[1:].to(logits.device)
    parts = [
        functional.cross_entropy(part.float(), next_ids, reduction="none").double().sum()
        for part, next_ids in zip(torch.split(predicted, CHUNK), torch.split(expected, CHUNK), strict=True)
    ]
    return torch.stack(parts).sum()
