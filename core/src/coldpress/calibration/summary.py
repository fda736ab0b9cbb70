"""What a model is calibrated on, in one line and in the report."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict, fields_dict, frozen
from torch import Tensor

from coldpress.arguments import DEFAULT_DATASET, DatasetArguments
from coldpress.calibration.batch import CalibrationBatch, count_places, count_tokens

log = logging.getLogger(__name__)

_BY_DEFAULT = fields_dict(DatasetArguments)["num_calibration_samples"].default
_FEW = 0.5  # of the tokens that were asked for: with fewer, that is told


@frozen
class CalibrationPart:
    """One of the data sets that a model is calibrated on.

    Attributes:
        dataset: what it is called.
        samples: of it that are used.
        asked_samples: how many were asked for; None for all.
    """

    dataset: str
    samples: int
    asked_samples: int | None

    def words(self) -> str:
        """`'a.jsonl' (70 samples)`."""
        return f"{self.dataset} ({_samples(self.samples)})"


@frozen(kw_only=True)
class CalibrationSummary:
    """What a model is calibrated on.

    Attributes:
        dataset: what it is called.
        samples: how many are used.
        tokens: of them that count in statistics; None where nothing tells.
        padding: places of batches that no token has which counts.
        cut: tokens that were cut off so that samples of a batch have one length.
        batches: that they are joined to.
        longest: tokens of the longest sample.
        packed: whether texts were joined and cut into samples of one length.
        empty: rows without a token, which were left out.
        lacking: rows that lack a column which others have, and were left out.
        asked_samples: how many were asked for; None for all.
        asked_length: tokens of a sample that were asked for; None where none were.
        parts: the data sets, one after the other; empty where batches are taken as they are.
    """

    dataset: str
    samples: int
    tokens: int | None
    padding: int
    cut: int = 0
    batches: int = 0
    longest: int = 0
    packed: bool = False
    empty: int = 0
    lacking: int = 0
    asked_samples: int | None = None
    asked_length: int | None = None
    parts: tuple[CalibrationPart, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The entry of the report."""
        return asdict(self)

    def line(self) -> str:
        """All of it that says something, in one line."""
        parts = [_samples(self.samples)]
        if self.tokens is not None:
            longest = (
                f" (the longest has {self.longest})" if self.longest * self.samples not in (0, self.tokens) else ""
            )
            parts += [f"{self.tokens} tokens{longest}", f"{self.padding} of padding" if self.padding else "no padding"]
        parts += ["packed"] if self.packed else []
        parts += [f"{self.cut} tokens cut off to join samples"] if self.cut else []
        parts += [f"{self.empty} empty rows left out"] if self.empty else []
        return f"calibration: {self.dataset}, {', '.join(parts)}"

    def warnings(self) -> list[str]:
        """Where it is less than was asked for."""
        found = []
        for part in self.parts or (CalibrationPart(self.dataset, self.samples, self.asked_samples),):
            unasked = part.dataset == repr(DEFAULT_DATASET) and part.asked_samples == _BY_DEFAULT
            if part.asked_samples is not None and part.samples < part.asked_samples and not unasked:
                found.append(f"{part.dataset} gives {_samples(part.samples)}, and {part.asked_samples} were asked for")
        wanted = self.samples * (self.asked_length or 0)
        if self.tokens is not None and not self.packed and self.tokens < _FEW * wanted:
            found.append(
                f"{self.dataset}: its samples have {self.tokens // max(1, self.samples)} tokens in the mean, where "
                f"max_seq_length={self.asked_length} was asked for; concatenate_data=True joins "
                "texts to that length"
            )
        return found


def summary_of(batches: Sequence[CalibrationBatch], dataset: str, **more: Any) -> CalibrationSummary:
    """Count what is in batches.

    Args:
        batches: that the model is calibrated on.
        dataset: what the data are called.
        **more: attributes of the summary that batches do not tell.
    """
    counts, places = [count_tokens(batch) for batch in batches], [count_places(batch) for batch in batches]
    tokens = None if None in counts else sum(count or 0 for count in counts)
    padding = 0 if tokens is None else sum(place or 0 for place in places) - tokens
    samples = sum(_rows(batch) for batch in batches)
    return CalibrationSummary(
        dataset=dataset, samples=samples, tokens=tokens, padding=padding, batches=len(batches), **more
    )


def _samples(count: int) -> str:
    return f"{count} sample{'' if count == 1 else 's'}"


def _rows(batch: Mapping[str, Any]) -> int:
    """Samples of a batch."""
    names = ("input_ids", "inputs_embeds", "decoder_input_ids", "labels", *batch)
    return next((len(batch[n]) for n in names if isinstance(batch.get(n), Tensor) and batch[n].ndim), 1)
