"""A batch of calibration data: the arguments of one forward, and which of its tokens count in statistics."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_MASKS = ("attention_mask", "decoder_attention_mask")


class CalibrationBatch(dict[str, Any]):
    """Keyword arguments of the model's forward.

    Attributes:
        token_masks: of the sequences that the model reads, [B, S] bool each: which tokens count in statistics.  The
            model is not called with them.
    """

    def __init__(self, arguments: Mapping[str, Any], token_masks: tuple[Tensor, ...] = ()) -> None:
        super().__init__(arguments)
        self.token_masks = token_masks


def token_masks(batch: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Which tokens of a batch count, [B, S] bool for each sequence of which that is known.

    Of a batch that does not say it, those count that the attention masks leave.
    """
    if isinstance(batch, CalibrationBatch) and batch.token_masks:
        return batch.token_masks
    masks = [batch.get(name) for name in _MASKS]
    return tuple(mask.bool() for mask in masks if isinstance(mask, Tensor) and mask.ndim == 2)


def count_tokens(batch: Mapping[str, Any]) -> int | None:
    """Tokens of a batch that count; None where nothing tells how many there are."""
    masks, ids, vectors = token_masks(batch), batch.get("input_ids"), batch.get("inputs_embeds")
    if masks:
        return sum(int(mask.count_nonzero()) for mask in masks)
    if isinstance(ids, Tensor):
        return ids.numel()
    return vectors.shape[:-1].numel() if isinstance(vectors, Tensor) else None


def count_places(batch: Mapping[str, Any]) -> int | None:
    """Tokens of a batch and what pads them; None where nothing tells how many there are."""
    masks = token_masks(batch)
    return sum(mask.numel() for mask in masks) if masks else count_tokens(batch)


def mask_for(x: Tensor, masks: tuple[Tensor, ...]) -> Tensor | None:
    """The mask of the sequence that an input belongs to, by its shape; None where all of its tokens count.

    Args:
        x: inputs of a layer, [B, S, ..., I], or [B * S, I] as routers of experts flatten them.
        masks: of the batch's sequences, [B, S] bool each.
    """
    for mask in masks:
        if (x.ndim > 2 and x.shape[:2] == mask.shape) or (x.ndim == 2 and len(x) == mask.numel()):
            return None if bool(mask.all()) else mask
    return None


def counted_tokens(x: Tensor, batch: Mapping[str, Any]) -> Tensor | None:
    """Which tokens of an output of the model's blocks count, as padding and the loss mask of its batch say.

    Args:
        x: [B, S, D], or [B * S, D].
        batch: one of `State.batches`.

    Returns:
        The mask, [B, S] bool; None where all of them count.
    """
    return mask_for(x, token_masks(batch))


def distinguishable(masks: tuple[Tensor, ...]) -> bool:
    """Whether the shape of an input tells which of the masks is its own."""
    shapes = {tuple(mask.shape) for mask in masks}
    return len(shapes) == len(masks) or all(torch.equal(mask, masks[0]) for mask in masks)
