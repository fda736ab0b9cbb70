"""Rows that hold what a model is called with: tokens, embeddings, pixels, features of sound."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from coldpress.calibration.loss_mask import loss_mask_of
from coldpress.calibration.model_inputs import ModelInputs
from coldpress.calibration.sample import COUNTED, Sample, as_tensor
from coldpress.errors import CalibrationError

MAIN = {"input_ids": 1, "inputs_embeds": 2, "input_features": 2, "pixel_values": 3, "input_values": 1}
"""What a model reads, and how many dimensions it has without that of a batch."""

_DECODER = ("decoder_input_ids", "decoder_inputs_embeds", "decoder_attention_mask")
_IDS = ("input_ids", "decoder_input_ids")
_BESIDE = ("attention_mask", "decoder_attention_mask", "position_ids", "token_type_ids", "labels", *COUNTED)
_RANKS = {name: (1, 1) for name in (*_IDS, *_BESIDE)} | {
    "inputs_embeds": (2, 2),
    "decoder_inputs_embeds": (2, 2),
    "attention_mask": (1, 3),
    "position_ids": (1, 2),
    "labels": (0, 1),
}  # least and most dimensions, without that of a batch


def holds_inputs(row: Mapping[str, Any], inputs: ModelInputs, text_column: str) -> bool:
    """Whether a row is what the model is called with, and needs no tokenizer."""
    if row.get("input_ids") is not None or row.get("inputs_embeds") is not None:
        return True
    if row.get(text_column) is not None:
        return False
    known = (inputs.names if inputs.names is not None else MAIN.keys()) - {*_BESIDE}
    return any(name in known and row[name] is not None and not isinstance(row[name], str) for name in row)


def unpacked(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row whose input_ids are all that the tokenizer gave, as those of `apply_chat_template(tokenize=True)` are."""
    tokens = row.get("input_ids")
    return {**row, **tokens} if isinstance(tokens, Mapping) and "input_ids" in tokens else row


def separate(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """One row for each sample of a row that holds several, as a map with batched=True makes them."""
    name = next((name for name in MAIN if row.get(name) is not None), None)
    count = _samples(row[name], MAIN[name]) if name else 1
    if name is None or count < 2:
        yield row
        return
    lists = {key: value for key, value in row.items() if _has_items(value)}
    if any(len(value) != count for value in lists.values()):
        yield row  # patches of several images in one column: they stay together
        return
    for index in range(count):
        yield {key: value[index] if key in lists else value for key, value in row.items()}


def sample_of(row: Mapping[str, Any], inputs: ModelInputs, where: str, *, use_loss_mask: bool = False) -> Sample:
    """A row as a sample; columns that the model does not take are left out, with a warning.

    Args:
        row: with one of `MAIN`, or other arguments of the forward; with a batch dimension or without.
        inputs: what the model takes.
        where: which row of which data set, for messages.
        use_loss_mask: a column of the row says which tokens count.

    Raises:
        CalibrationError: a column is not of its form.
    """
    extra = ("attention_mask", "decoder_attention_mask", *((*COUNTED, "labels") if use_loss_mask else ()))
    taken = {name: row[name] for name in row if row[name] is not None and (inputs.takes(name) or name in extra)}
    why = f"left out of the calibration data, {inputs.model}.forward has no such argument"
    inputs.drop((str(name) for name in row if name not in taken and row[name] is not None), why)
    columns = batched({name: _tensor(name, value, where) for name, value in taken.items()})
    return arranged(columns, inputs, where, row=row, use_loss_mask=use_loss_mask)


def arranged(
    columns: Mapping[str, Any],
    inputs: ModelInputs,
    where: str,
    *,
    row: Mapping[str, Any] | None = None,
    use_loss_mask: bool = False,
) -> Sample:
    """Columns with a batch dimension as a sample.

    Args:
        columns: of one row, or of several that stay together.
        inputs: what the model takes.
        where: which row of which data set, for messages.
        row: as the data have it.
        use_loss_mask: a column says which tokens count.

    Raises:
        CalibrationError: a column is not of its form.
    """
    _check_shapes(columns, where)
    counts = _counts(columns, inputs, where) if use_loss_mask else None
    main = next((columns[name] for name in ("input_ids", "inputs_embeds") if name in columns), None)
    decoder = {n: v for n, v in columns.items() if n in _DECODER or (n == "labels" and inputs.is_encoder_decoder)}
    dropped = (*COUNTED, *(() if inputs.takes("labels") else ("labels",)))
    rest = {n: v for n, v in columns.items() if n not in decoder and n not in dropped}
    if main is None:
        rest.pop("labels", None)
        return Sample(decoder=_masked(decoder, where), others=rest, row=row)
    tokens = {name: value for name, value in rest.items() if _is_per_token(name, value, main)}
    others = {name: value for name, value in rest.items() if name not in tokens and name != "labels"}
    mask = others.pop("attention_mask", None)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        ids = "input_ids" if "input_ids" in columns else "inputs_embeds"
        raise CalibrationError(f"{where} has {main.shape[1]} {ids} and a mask of {mask.shape[-1]}")
    if mask is not None:
        others["attention_mask"] = mask
    else:
        tokens.setdefault("attention_mask", torch.ones(main.shape[:2], dtype=torch.int64))
    if counts is not None and counts.shape != main.shape[:2]:
        raise CalibrationError(f"{where} has {main.shape[1]} tokens and a loss mask of {counts.shape[-1]}")
    _check_ids(columns, inputs, where, media=bool(others))
    return Sample(tokens, _masked(decoder, where), others, counts, row)


def _counts(columns: Mapping[str, Any], inputs: ModelInputs, where: str) -> Tensor | None:
    """Which tokens have a loss; None where the labels are those of a decoder, which counts them by itself."""
    of_decoder = inputs.is_encoder_decoder and not any(name in columns for name in COUNTED)
    return None if of_decoder and "labels" in columns else loss_mask_of(columns, where)


def batched(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of a row with a batch dimension, which those that have one keep."""
    rank = next((getattr(columns[name], "ndim", 0) - MAIN[name] for name in MAIN if name in columns), 0)
    if rank > 0:
        return dict(columns)
    flat = any(name.endswith("_grid_thw") for name in columns)  # patches of all images are one row after another
    return {
        name: value if not isinstance(value, Tensor) or _keeps(name, value, flat=flat) else value[None]
        for name, value in columns.items()
    }


def _keeps(name: str, value: Tensor, *, flat: bool) -> bool:
    """Whether images of one sample stand in a column as they do in a batch."""
    if name.endswith("_grid_thw"):
        return True
    return name.startswith("pixel_values") and (flat or value.ndim > 3)


def _has_items(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0


def _samples(value: Any, rank: int) -> int:
    """How many samples a column holds."""
    tensor = as_tensor(value)
    if isinstance(tensor, Tensor):
        return len(tensor) if tensor.ndim > rank else 1
    nested = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return len(value) if nested and all(hasattr(part, "__len__") and not isinstance(part, str) for part in value) else 1


def _tensor(name: str, value: Any, where: str) -> Any:
    tensor = as_tensor(value)
    if isinstance(tensor, Tensor) and (name not in _IDS or not _is_fraction(tensor)):
        return tensor
    if name in _IDS or name in MAIN or name in _BESIDE:
        kind = f"{tensor.dtype} numbers" if isinstance(tensor, Tensor) else f"{_described(value)}"
        raise CalibrationError(f"{where}: column {name!r} must hold {_wanted(name)}, not {kind}")
    return value


def _is_fraction(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _described(value: Any) -> str:
    if isinstance(value, (list, tuple)) and value:
        kinds = {type(part).__name__ for part in value}
        return f"a list of {' and '.join(sorted(kinds))}" + (" of other sizes" if kinds <= {"int", "list"} else "")
    return f"the text {value[:40]!r}" if isinstance(value, str) else type(value).__name__


def _wanted(name: str) -> str:
    return "token ids (whole numbers)" if name in _IDS else "numbers"


def _is_per_token(name: str, value: Any, main: Tensor) -> bool:
    """Whether a column has an entry for each token."""
    if not isinstance(value, Tensor) or value.shape[:2] != main.shape[:2] or name.endswith("_grid_thw"):
        return False
    return value is main or (value.ndim == 2 and (not value.is_floating_point() or "mask" in name))


def _masked(decoder: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """What a decoder reads, with a mask, so that it can be padded."""
    shapes = {name: tuple(value.shape[:2]) for name, value in decoder.items()}
    if any(len(shape) < 2 for shape in shapes.values()) or len(set(shapes.values())) > 1:
        found = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise CalibrationError(f"{where}: what a decoder reads must have one length for each sample: {found}")
    sequence = next((decoder[name] for name in _DECODER[:2] if name in decoder), None)
    if sequence is None:
        return dict(decoder)
    return {"decoder_attention_mask": torch.ones(sequence.shape[:2], dtype=torch.int64), **decoder}


def _check_shapes(columns: Mapping[str, Any], where: str) -> None:
    """Refuse columns of another number of dimensions than their name says."""
    for name, (least, most) in _RANKS.items():
        value = columns.get(name)
        if isinstance(value, Tensor) and not least < value.ndim <= most + 1:
            raise CalibrationError(
                f"{where}: column {name!r} has {value.ndim} dimensions with that of the batch, and must have {most + 1}"
            )


def _check_ids(columns: Mapping[str, Any], inputs: ModelInputs, where: str, *, media: bool) -> None:
    """Refuse ids that no embedding has; beside images, some models have ids of their own."""
    ids = columns.get("input_ids")
    if ids is None or media or inputs.vocabulary is None or ids.numel() == 0:
        return
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= inputs.vocabulary:
        wrong = least if least < 0 else most
        raise CalibrationError(
            f"{where} has the token {wrong}, and {inputs.model} has {inputs.vocabulary} of them, from 0: the data were "
            "made with another tokenizer"
        )
