"""Training data: samples with labels, from whatever names a data set, and how a Trainer makes batches of them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from coldpress.arguments import DEFAULT_DATASET, DatasetArguments
from coldpress.calibration.encoder import RowEncoder, pad_token
from coldpress.calibration.mixture import parts_of
from coldpress.calibration.model_inputs import ModelInputs
from coldpress.calibration.rows import find_rows
from coldpress.calibration.sample import Sample
from coldpress.errors import CalibrationError

log = logging.getLogger(__name__)

NO_LABEL = -100
Row = dict[str, Tensor]


def load_training_rows(
    arguments: DatasetArguments,
    tokenizer: Any,
    seed: int = 0,
    *,
    model: nn.Module,
    most: int | None = None,
    processor: Callable[[], Any] | None = None,
) -> list[Row]:
    """Samples as a causal language model is trained on them, each cut as for calibration.

    A label is the token itself, but where the data say that a token has no loss: `labels` of -100, a loss mask, or,
    with `use_loss_mask`, what a chat template does not mark as generated.

    Args:
        arguments: which data, how long.
        tokenizer: of the model, or its processor; may be None where rows hold tokens.
        seed: of the shuffle.
        model: that is trained.
        most: samples that are used; None uses all.
        processor: loads the model's processor.

    Returns:
        `input_ids`, `attention_mask` and `labels`, [S] each, and what else the model takes.

    Raises:
        CalibrationError: there are no data, no sample has two tokens, or none has a label.
    """
    if arguments.dataset is None and arguments.dataset_path is None:
        raise CalibrationError(
            f"training needs data: pass dataset=..., such as {DEFAULT_DATASET!r}, which is very short"
        )
    asked = evolve(arguments, num_calibration_samples=most)
    samples: list[Sample] = []
    for part in parts_of(asked):
        encoder = RowEncoder(part, tokenizer, ModelInputs.of(model), find_rows(part, seed), processor)
        samples += islice(encoder.samples(), part.num_calibration_samples)
    rows = [row for sample in samples if len((row := _row(sample))["input_ids"]) > 1]
    if not rows:
        raise CalibrationError(
            f"{encoder.rows.origin}: none of its {len(samples)} samples has two tokens, so there is nothing to predict"
        )
    labelled = [row for row in rows if bool((row["labels"][1:] != NO_LABEL).any())]
    if not labelled:
        raise CalibrationError(
            f"{encoder.rows.origin}: no token of its {len(rows)} samples has a label: labels are all -100, or the loss "
            "mask leaves nothing"
        )
    if len(labelled) < len(samples):
        log.warning("%d of %d samples have no token to predict and are left out", *_left(samples, labelled))
    return labelled


@frozen
class PaddingCollator:
    """Rows to a batch, padded on the right to the longest.

    Attributes:
        pad: token id of padding.
    """

    pad: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Columns, [B, S] each."""
        fill = {"input_ids": self.pad, "labels": NO_LABEL}
        length = max(len(row["input_ids"]) for row in rows)
        return {
            name: torch.stack([_padded(torch.as_tensor(row[name]), length, fill.get(name, 0)) for row in rows])
            for name in rows[0]
        }


def padding_collator(tokenizer: Any) -> PaddingCollator:
    """The collator that pads with a tokenizer's token."""
    return PaddingCollator(pad_token(tokenizer))


def _row(sample: Sample) -> Row:
    columns = {name: value[0] for name, value in sample.tokens.items()}
    ids = columns.get("input_ids")
    if ids is None or sample.others:
        raise CalibrationError("training takes rows of tokens or text; images, sound and embeddings are not trained on")
    mask = columns.get("attention_mask", torch.ones_like(ids))
    given = sample.decoder.get("labels")
    labels = columns.get("labels", ids if given is None else given[0])
    counted = mask.bool() if sample.counts is None else mask.bool() & sample.counts[0]
    if len(labels) != len(ids):
        raise CalibrationError(f"a row has {len(ids)} input_ids and {len(labels)} labels: one label for each token")
    return {**columns, "attention_mask": mask, "labels": labels.masked_fill(~counted, NO_LABEL)}


def _padded(column: Tensor, length: int, fill: int) -> Tensor:
    return torch.cat([column, column.new_full((length - len(column),), fill)])


def _left(samples: Sequence[Sample], kept: Sequence[Row]) -> tuple[int, int]:
    return len(samples) - len(kept), len(samples)
