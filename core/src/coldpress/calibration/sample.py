"""A sample of calibration data: the sequence that the model reads, and what goes with it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from coldpress.calibration.batch import attended

COUNTED = ("loss_mask", "assistant_masks", "completion_mask")
"""Columns of rows that say which tokens count."""

_NO_LABEL = -100
_SEQUENCES = ("input_ids", "inputs_embeds")
_DECODER_SEQUENCES = ("decoder_input_ids", "decoder_inputs_embeds", "labels")


@frozen(eq=False)
class Sample:
    """What a model is called with, each column as in a batch of this sample alone.

    Attributes:
        tokens: columns with an entry for each token, [1, S, ...]: input_ids, attention_mask, token_type_ids, ...
        decoder: columns with an entry for each token of a decoder, [1, T, ...].
        others: columns of other shapes: pixel_values, image_grid_thw, input_features, ...
        counts: which tokens count in statistics, [1, S] bool; None counts those that the attention mask leaves.
        row: as the data have it, for collators that are functions; None where it is made of text.
    """

    tokens: Mapping[str, Tensor] = field(factory=dict)
    decoder: Mapping[str, Tensor] = field(factory=dict)
    others: Mapping[str, Any] = field(factory=dict)
    counts: Tensor | None = None
    row: Mapping[str, Any] | None = None

    @property
    def length(self) -> int:
        """Tokens, padding included."""
        return _length(self.tokens, _SEQUENCES)

    @property
    def decoder_length(self) -> int:
        """Tokens that a decoder reads."""
        return _length(self.decoder, _DECODER_SEQUENCES)

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for samples that fit into one batch once they have the same lengths."""
        per_token = {**self.tokens, **self.decoder}
        shapes: list[tuple[str, tuple[Any, ...]]] = [(name, tuple(v.shape[2:])) for name, v in per_token.items()]
        shapes += [(f"{name}, dtype", (str(v.dtype),)) for name, v in per_token.items() if "mask" in name]
        shapes += [(name, tuple(getattr(value, "shape", ())[1:])) for name, value in self.others.items()]
        return (*sorted(shapes), self.counts is None)

    def columns(self) -> dict[str, Any]:
        """All of them."""
        return {**self.tokens, **self.decoder, **self.others}

    def counted(self) -> int:
        """Tokens that count; 1 for a sample of something else than tokens."""
        mask = self.counts if self.counts is not None else self.columns().get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim > 1 and self.length:
            return int(attended(mask).count_nonzero())
        return self.length or self.decoder_length or int(bool(self.others))

    def cut(self, length: int, decoder_length: int | None = None) -> "Sample":
        """The first tokens, and those of the decoder."""
        return evolve(
            self,
            tokens={name: value[:, :length] for name, value in self.tokens.items()},
            decoder={name: value[:, :decoder_length] for name, value in self.decoder.items()},
            counts=None if self.counts is None else self.counts[:, :length],
        )

    def padded(self, length: int, decoder_length: int, pad: int) -> "Sample":
        """Padded on the right, where it moves no position of a token."""
        return evolve(
            self,
            tokens={name: _pad(name, value, length, pad) for name, value in self.tokens.items()},
            decoder={name: _pad(name, value, decoder_length, pad) for name, value in self.decoder.items()},
            counts=None if self.counts is None else _pad("counts", self.counts, length, 0),
        )

    def for_collator(self) -> dict[str, Any]:
        """What a collator that is a function is handed: the row as it is but for what was cut, or a text's tokens."""
        if self.row is not None:
            cut = {*self.tokens, *COUNTED} if self.length else set()
            return {name: _first(value, self.length) if name in cut else value for name, value in self.row.items()}
        return {
            **{name: value[0].tolist() for name, value in {**self.tokens, **self.decoder}.items()},
            **{n: v[0] if isinstance(v, Tensor) and len(v) == 1 else v for n, v in self.others.items()},
        }


def joined(samples: Sequence[Sample]) -> tuple[dict[str, Any], Tensor | None]:
    """The columns of samples of one kind and length, [B, ...] each, and which tokens count, [B, S]."""
    columns = [sample.columns() for sample in samples]
    batch = {name: _joined([one[name] for one in columns]) for name in columns[0]}
    counts = [sample.counts for sample in samples if sample.counts is not None]
    return batch, torch.cat(counts) if counts else None


def _joined(values: Sequence[Any]) -> Any:
    """A column of several samples: a tensor, or a list of what is none."""
    if len(values) == 1:
        return values[0]
    return torch.cat([*values]) if all(isinstance(value, Tensor) for value in values) else [*values]


def as_tensor(value: Any) -> Any:
    """Numbers in lists or arrays as a tensor; anything else as it is."""
    if isinstance(value, (Tensor, str, bytes, Mapping)) or value is None:
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return value


def _first(value: Any, length: int) -> Any:
    """The first entries of a column of a row, with or without a batch dimension."""
    nested = value.ndim > 1 if isinstance(value, Tensor) else bool(value) and hasattr(value[0], "__len__")
    if not nested:
        return value[:length]
    return value[:, :length] if isinstance(value, Tensor) else [part[:length] for part in value]


def _length(columns: Mapping[str, Tensor], names: Sequence[str]) -> int:
    return next((columns[name].shape[1] for name in names if name in columns), 0)


def _pad(name: str, value: Tensor, length: int, token: int) -> Tensor:
    """A column, [1, S, ...], with an entry for each of `length` tokens."""
    fill: float = token if name.endswith("input_ids") else _NO_LABEL if name == "labels" else 0
    if "mask" in name and value.is_floating_point() and not bool((value > 0).any()):  # added to scores
        fill = torch.finfo(value.dtype).min
    rest = value.new_full((len(value), max(0, length - value.shape[1]), *value.shape[2:]), fill)
    return torch.cat([value, rest], dim=1)
