"""A batch of calibration data: the arguments of one forward, and which of its tokens count in statistics."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_MASKS = ("attention_mask", "decoder_attention_mask")
_MASKED = -1e3  # what an additive mask adds is far below; a bias of positions, which some add to it, is not


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
    return tuple(attended(mask) for mask in masks if isinstance(mask, Tensor) and mask.ndim > 1)


def attended(mask: Tensor) -> Tensor:
    """Which tokens an attention mask leaves, [B, S] bool.

    Args:
        mask: [B, S], or one of queries and keys, [B, Q, S] or [B, H, Q, S], which leaves the tokens that some query
            attends to.  Zero, or False, is padding; in one of floats that are added to scores, large negative ones are.
    """
    added = mask.is_floating_point() and mask.numel() > 0 and float(mask.min()) < 0
    kept = mask > _MASKED if added else mask.bool()
    return kept.flatten(1, -2).any(1) if kept.ndim > 2 else kept


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
        x: inputs of a layer, [B, S, ..., I], [S, B, ..., I], or [B * S, I] as routers of experts flatten them.
        masks: of the batch's sequences, [B, S] bool each.

    Returns:
        The mask, [B, S] or [S, B] bool as the first dimensions of the input are.
    """
    for found in (*masks, *(mask.t() for mask in masks)):
        if (x.ndim > 2 and x.shape[:2] == found.shape) or (x.ndim == 2 and len(x) == found.numel()):
            return None if bool(found.all()) else found
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
