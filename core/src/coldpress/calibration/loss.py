"""The model's loss, and its gradient by the logits: where a reverse sweep begins."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from coldpress.calibration.batch import mask_for, token_masks
from coldpress.errors import CalibrationError
from coldpress.statistic import Labels

_CHUNK = 256  # tokens whose probabilities are held at once
_IGNORED = -100


@frozen(eq=False)
class CrossEntropy:
    """The sum of the cross-entropy over all tokens that count, by labels of one kind; a `LossGradient`.

    Attributes:
        batches: of the run.
        labels: drawn from the model's own predictions, or the tokens of the data.
        seed: of what is drawn; it depends on the row of the data and on nothing else.
        losses: sum of the loss and number of labels of each batch so far.
    """

    batches: Sequence[Mapping[str, Any]]
    labels: Labels
    seed: int = 0
    losses: dict[int, tuple[float, int]] = field(factory=dict)

    def __call__(self, index: int, output: Any) -> tuple[Tensor, Tensor]:
        """The logits of a batch, [B, S, V], and the gradient of the loss by them.

        Raises:
            CalibrationError: there are no logits, no graph, or no labels.
        """
        logits = _logits(output)
        predicted = logits.detach()
        labels = self._drawn(index, predicted) if self.labels == "sampled" else self._given(index, predicted)  # [B, S]
        gradient = torch.empty_like(predicted)
        pairs = zip(_chunks(predicted.flatten(0, 1)), _chunks(gradient.flatten(0, 1)), strict=True)
        loss = predicted.new_zeros((), dtype=torch.float64)
        for (part, into), wanted in zip(pairs, _chunks(labels.flatten()), strict=True):
            log_p = part.float().log_softmax(-1)  # [t, V]
            counts, place = wanted != _IGNORED, wanted.clamp(min=0)[:, None]
            loss -= (log_p.gather(1, place)[:, 0] * counts).double().sum()
            slope = log_p.exp_()
            slope.scatter_add_(1, place, slope.new_full(place.shape, -1.0))
            into.copy_(slope * counts[:, None])  # softmax less the label, of tokens that count
        self.losses[index] = (float(loss), int((labels != _IGNORED).sum()))
        return logits, gradient

    def _drawn(self, index: int, logits: Tensor) -> Tensor:
        """Labels from the model's predictions at temperature 1, [B, S]; padding has none."""
        row = sum(_rows(batch) for batch in self.batches[:index])
        drawn = torch.empty(logits.shape[:2], dtype=torch.int64, device=logits.device)
        for number in range(len(logits)):
            generator = torch.Generator().manual_seed(((self.seed << 32) + row + number) % 2**64)
            uniform = torch.rand(logits.shape[1], generator=generator, dtype=torch.float64).to(logits.device)  # [S]
            for part, u, into in zip(*map(_chunks, (logits[number], uniform, drawn[number])), strict=True):
                reached = part.float().softmax(-1).cumsum(-1)  # [t, V]
                point = (u.float() * reached[:, -1])[:, None]
                into.copy_(torch.searchsorted(reached, point, right=True)[:, 0].clamp(max=part.shape[-1] - 1))
        mask = mask_for(logits, token_masks(self.batches[index]))
        return drawn if mask is None else drawn.masked_fill(~mask.to(drawn.device), _IGNORED)

    def _given(self, index: int, logits: Tensor) -> Tensor:
        """The tokens that come next, [B, S]; the last of a row and what comes before padding have none."""
        batch = self.batches[index]
        ids = batch.get("decoder_input_ids", batch.get("input_ids"))
        if not isinstance(ids, Tensor) or ids.shape != logits.shape[:2]:
            raise CalibrationError(
                f"batch {index} has no token ids for its {tuple(logits.shape[:2])} predictions, so the data have no "
                "labels: use sampled labels"
            )
        ids = ids.to(logits.device)
        mask = mask_for(logits, token_masks(batch))
        counted = ids if mask is None else ids.masked_fill(~mask.to(ids.device), _IGNORED)
        return torch.cat([counted[:, 1:], counted.new_full((len(ids), 1), _IGNORED)], 1)


def _logits(output: Any) -> Tensor:
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(found, Tensor) or found.ndim != 3:
        raise CalibrationError(
            "the model gives no logits for every token, so it has no loss to differentiate: leave guidance out"
        )
    if not found.requires_grad:
        raise CalibrationError(
            "the model's forward cannot be differentiated: its logits depend on no output of a block by autograd"
        )
    return found


def _chunks(x: Tensor) -> tuple[Tensor, ...]:
    return torch.split(x, _CHUNK)


def _rows(batch: Mapping[str, Any]) -> int:
    return next((len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim > 0), 0)
