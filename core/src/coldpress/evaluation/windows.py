"""A text cut into windows of tokens that do not overlap, and a model run on them."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any, Protocol

import torch
from torch import Tensor

from coldpress.calibration import short
from coldpress.calibration.multimodal import text_tokenizer
from coldpress.calibration.tokens import tokenized
from coldpress.errors import ArgumentError, ModelError
from coldpress.foreign import reading


class Tracker(Protocol):
    """Something that shows progress."""

    def track(self, iterable: Iterable[Any], *, description: str, total: int | None = None) -> Iterable[Any]:
        """Hand the items on."""
        ...


def cut_windows(
    tokenizer: Any, text: str | Sequence[str] | None, *, window: int, max_tokens: int | None = None
) -> list[Tensor]:
    """Tokens of a text in windows, each [window] but the last, which may be shorter and has at least two.

    A window begins with the token that begins a text, where the tokenizer writes one; it takes a place of the window.
    The tokenizer is left as it was.

    Args:
        tokenizer: of the model, or its processor.
        text: a text, several that are joined by blank lines, or None for the held-out half of `coldpress/short`.
        window: tokens of a window, at least 2.
        max_tokens: tokens of the text that are used; None uses all.

    Raises:
        ArgumentError: a window or the text has fewer than two tokens.
    """
    if window < 2:
        raise ArgumentError(f"window must be at least 2 tokens, the last of which is predicted, got {window}")
    if text is None:
        text = [row["text"] for row in short.load("held_out")]
    words = text if isinstance(text, str) else "\n\n".join(text)
    tokenizer = deepcopy(text_tokenizer(tokenizer))  # a call resets the truncation that a fast one was loaded with
    tokenizer.truncation_side = "right"
    with reading("the tokenizer cannot read the text"):
        ids = torch.tensor(tokenized(tokenizer, words, limit=max_tokens, special=False), dtype=torch.int64)
    begin = tokenizer("a")["input_ids"][:1]
    bos = getattr(tokenizer, "bos_token_id", None)
    start = torch.tensor(begin if bos is not None and begin == [bos] else [], dtype=torch.int64)
    windows = [torch.cat([start, part]) for part in torch.split(ids, window - len(start))]
    windows = [part for part in windows if len(part) >= 2]
    if len(ids) < 2 or not windows:
        raise ArgumentError(f"the text has {len(ids)} tokens; to evaluate, a text needs at least 2")
    return windows


def batched(windows: Sequence[Tensor], batch_size: int) -> list[Tensor]:
    """Neighbouring windows of one length joined, [B, S] each, so that nothing needs padding."""
    batches: list[list[Tensor]] = []
    for window in windows:
        if batches and len(batches[-1]) < batch_size and len(batches[-1][0]) == len(window):
            batches[-1].append(window)
        else:
            batches.append([window])
    return [torch.stack(batch) for batch in batches]


def check_fits(model: Any, windows: Sequence[Tensor]) -> None:
    """Refuse windows that the model cannot read.

    Raises:
        ArgumentError: a window is longer than the model's context, or a token is not in its vocabulary.
    """
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    context = getattr(config, "max_position_embeddings", None)
    longest = max(len(window) for window in windows)
    if isinstance(context, int) and longest > context:
        raise ArgumentError(
            f"window {longest} is longer than the model's context of {context} tokens: choose a smaller one"
        )
    largest, vocabulary = max(int(window.max()) for window in windows), getattr(config, "vocab_size", None)
    if isinstance(vocabulary, int) and largest >= vocabulary:
        raise ArgumentError(
            f"the tokenizer gives token {largest}, and the model's vocabulary has {vocabulary}: they do not fit"
        )


def logits_of(model: Any, ids: Tensor) -> Tensor:
    """What a model says to tokens [B, S], in its own dtype and on its device, [B, S, vocabulary].

    Raises:
        ModelError: it is no model that predicts the next token of a text.
    """
    kind, device = type(model).__name__, next(model.parameters()).device
    needed = "evaluation measures models that predict the next token of a text"
    if kind.endswith("ForMaskedLM") or getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ModelError(f"a {kind} does not predict the next token from those before it: {needed}")
    try:
        logits = getattr(model(input_ids=ids.to(device), use_cache=False), "logits", None)
    except TypeError as error:
        raise ModelError(f"a {kind} does not take tokens alone: {needed} ({error})") from error
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != ids.shape:
        raise ModelError(f"a {kind} gives no logits for every token: {needed}")
    return logits


def tracked(batches: Sequence[Tensor], progress: Tracker | None, description: str) -> Iterable[Tensor]:
    """The batches, with a progress bar at a terminal."""
    return batches if progress is None else progress.track(batches, description=description, total=len(batches))
