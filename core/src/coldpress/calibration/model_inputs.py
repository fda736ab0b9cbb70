"""What a model's forward takes, and batches completed to that: masks, inputs of a decoder, dtype."""

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from coldpress.calibration.batch import CalibrationBatch, attended, distinguishable
from coldpress.errors import CalibrationError

log = logging.getLogger(__name__)

_INNER = ("base_model", "model", "module")  # where a wrapper keeps the model that it hands its arguments to
_DECODER = ("decoder_input_ids", "decoder_inputs_embeds", "labels")
_SHORT = (torch.uint8, torch.int8, torch.int16, torch.uint16)
_BESIDE = ("attention_mask", "decoder_attention_mask", "position_ids", "token_type_ids", "labels")
_NO_LABEL = -100  # what losses leave out, and models turn into padding


@frozen(eq=False)
class ModelInputs:
    """The arguments of a model's forward.

    Attributes:
        names: of the arguments; None where it takes any.
        model: name of its class.
        is_encoder_decoder: the forward reads a second sequence.
        dtype: of its floating point inputs; None leaves them alone.
        start_token: id of the token that a decoder begins with.
        pad_token: id of the token that fills a decoder's sequence.
        vocabulary: how many tokens have an embedding; None where that is not known.
        frames: makes a mask of frames, [B, S], of one of sound, [B, N]; None where the model does not.
    """

    names: frozenset[str] | None = None
    model: str = "the model"
    is_encoder_decoder: bool = False
    dtype: torch.dtype | None = None
    start_token: int = 0
    pad_token: int = 0
    vocabulary: int | None = None
    frames: Callable[[Tensor], Tensor] | None = None
    _warned: set[str] = field(factory=set)

    @classmethod
    def of(cls, model: nn.Module) -> "ModelInputs":
        """Read them from the signature of the forward, and of what it hands `**kwargs` to."""
        names = _argument_names(model)
        config: Any = getattr(model, "config", None)
        configs = (config, *(getattr(config, part, None) for part in ("text_config", "decoder")))
        floats = (p.dtype for p in model.parameters() if p.dtype.is_floating_point and p.dtype.itemsize > 1)
        return cls(
            names=names,
            model=type(model).__name__,
            is_encoder_decoder=names is not None and "decoder_input_ids" in names,
            dtype=next(floats, None),
            start_token=_token(("decoder_start_token_id", "bos_token_id", "pad_token_id"), *configs),
            pad_token=_token(("pad_token_id", "eos_token_id"), *configs),
            vocabulary=_vocabulary(model),
            frames=_frames_of(model),
        )

    def takes(self, name: str) -> bool:
        """Whether the forward has an argument of this name."""
        return self.names is None or name in self.names

    def batch(self, found: Mapping[str, Any], token_mask: Tensor | None = None) -> CalibrationBatch:
        """A batch as the model is called with it.

        What the forward does not take is left out, with a warning for each name; a mask of ones is added where it takes
        one; a decoder that is given nothing reads the encoder's tokens, shifted by one.

        Args:
            found: columns with a batch dimension.
            token_mask: which tokens count in statistics, [B, S]; None counts those that the attention mask leaves.

        Raises:
            CalibrationError: nothing of it is an argument of the forward.
        """
        mask: Any = found.get("attention_mask")
        batch = self._taken(found)
        ids = batch.get("input_ids")
        if isinstance(ids, Tensor) and mask is None:
            mask = torch.ones_like(ids)
            if self.takes("attention_mask"):
                batch["attention_mask"] = mask
        if isinstance(ids, Tensor) and not self.takes("attention_mask") and bool(attended(mask).all()):
            mask = self._named_otherwise(batch, ids, mask)
        masks = self._counted(mask, batch)
        if token_mask is not None:
            masks = [token_mask.bool() & masks[0] if masks else token_mask.bool()]
        if self.is_encoder_decoder:
            masks += self._decoder(batch, found.get("decoder_attention_mask"), masks)
        return CalibrationBatch(batch, tuple(masks))

    def _counted(self, mask: Any, batch: Mapping[str, Any]) -> list[Tensor]:
        """Which tokens an attention mask leaves; one of sound is over samples, which a model makes frames of."""
        if not isinstance(mask, Tensor) or mask.ndim < 2:
            return []
        if _has_tokens(batch):
            return [attended(mask)]
        return [self.frames(attended(mask))] if self.frames is not None and "input_values" in batch else []

    def _named_otherwise(self, batch: Mapping[str, Any], ids: Tensor, mask: Tensor) -> Tensor:
        """The mask of padding that a model takes by another name; what it leaves is told by the ids: padding is one."""
        for name, value in batch.items():
            if "mask" not in name or not isinstance(value, Tensor) or not _is_over(value, ids):
                continue
            kept = attended(value)
            if kept.all() or not kept.any():
                continue
            hidden, shown = _is_one(ids[~kept]), _is_one(ids[kept])
            if hidden != shown:
                return kept if hidden else ~kept
            self.drop([name], "not known what it masks, so every token counts; see use_loss_mask")
        return mask

    def drop(self, names: Iterable[str], why: str) -> None:
        """Warn of columns that are left out, once for each."""
        fresh = [name for name in names if name not in self._warned]
        self._warned.update(fresh)
        if fresh:
            log.warning("%s: %s", ", ".join(fresh), why)

    def _taken(self, found: Mapping[str, Any]) -> dict[str, Any]:
        batch = {name: value for name, value in found.items() if self.takes(name) and value is not None}
        self.drop(
            (name for name in found if not self.takes(name) and not name.endswith("attention_mask")),
            f"left out of the calibration data, {self.model}.forward has no such argument",
        )
        if not any(name not in _BESIDE for name in batch):
            known = sorted(self.names or ("input_ids",))
            raise CalibrationError(
                f"a batch holds {', '.join(map(str, found)) or 'nothing'}, and {self.model}.forward needs one of "
                f"{', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"
            )
        _check_tensors(batch)
        return {name: self._cast(value, name) for name, value in batch.items()}

    def _cast(self, value: Any, column: str) -> Any:
        """The tensors of a nest in the dtype of the model, and as normal ones: those of inference mode are copied."""

        def cast(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            x = x.clone() if x.is_inference() else x
            if column.endswith("input_ids") and x.dtype in _SHORT:  # no embedding takes them
                return x.long()
            return x if self.dtype is None or not x.is_floating_point() else x.to(self.dtype)

        return tree_map(cast, value)

    def _decoder(self, batch: dict[str, Any], mask: Any, masks: list[Tensor]) -> list[Tensor]:
        """Complete what a decoder reads, in place; which of its tokens count, [B, T] bool."""
        if not any(name in batch for name in _DECODER):
            self._give_decoder(batch)
        sequence: Tensor = next(batch[name] for name in _DECODER if name in batch)
        if mask is None:
            labels = batch.get("labels")
            from_labels = labels is not None and "decoder_input_ids" not in batch
            mask = labels != _NO_LABEL if from_labels else torch.ones(sequence.shape[:2], dtype=torch.bool)
        counted: Tensor = attended(mask)
        if not distinguishable((*masks, counted)):  # inputs of layers are told apart by shape: one token of padding
            counted = self._padded(batch, counted)
        return [counted]

    def _give_decoder(self, batch: dict[str, Any]) -> None:
        ids = batch.get("input_ids")
        if isinstance(ids, Tensor):
            self.drop(["decoder_input_ids"], "not in the data, so the decoder reads the same tokens as the encoder")
            padding = ~attended(batch["attention_mask"]) if "attention_mask" in batch else torch.zeros_like(ids) > 0
            if self.takes("labels"):  # models shift them each in its own way
                batch["labels"] = ids.masked_fill(padding, _NO_LABEL)
                return
            start = torch.full_like(ids[:, :1], self.start_token)
            batch["decoder_input_ids"] = torch.cat([start, ids[:, :-1]], dim=1)
            return
        self.drop(["decoder_input_ids"], "not in the data, so the decoder reads nothing but its first token")
        rows = next(len(value) for value in batch.values() if isinstance(value, Tensor))
        batch["decoder_input_ids"] = torch.full((rows, 1), self.start_token)

    def _padded(self, batch: dict[str, Any], counted: Tensor) -> Tensor:
        """A decoder's sequence that is one token of padding longer, in place; its mask."""
        fill = {"decoder_input_ids": self.pad_token, "labels": _NO_LABEL, "decoder_attention_mask": 0}
        for name, value in fill.items():
            if name in batch:
                batch[name] = torch.nn.functional.pad(batch[name], (0, 1), value=value)
        if "decoder_inputs_embeds" in batch:
            batch["decoder_inputs_embeds"] = torch.nn.functional.pad(batch["decoder_inputs_embeds"], (0, 0, 0, 1))
        return torch.nn.functional.pad(counted, (0, 1))


def _check_tensors(batch: Mapping[str, Any]) -> None:
    """Refuse tensors without data, and a mask that is not over the tokens beside it.

    Raises:
        CalibrationError: names the column.
    """
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.is_meta:
            raise CalibrationError(f"{name} of a batch has no data: it is on the meta device")
    for prefix in ("", "decoder_"):
        ids, mask = batch.get(f"{prefix}input_ids"), batch.get(f"{prefix}attention_mask")
        if not (isinstance(ids, Tensor) and isinstance(mask, Tensor) and ids.ndim == 2 == mask.ndim):
            continue
        if len(ids) != len(mask) or mask.shape[1] < ids.shape[1]:  # a prefix may make it longer
            raise CalibrationError(
                f"{prefix}attention_mask of a batch, {tuple(mask.shape)}, is not over its {prefix}input_ids, "
                f"{tuple(ids.shape)}: it needs an entry for each token"
            )


def _argument_names(model: nn.Module) -> frozenset[str] | None:
    """Names that the forward takes; None where it takes any."""
    names: set[str] = set()
    seen: set[int] = set()
    inner: Any = model
    while isinstance(inner, nn.Module) and id(inner) not in seen:
        seen.add(id(inner))
        parameters = inspect.signature(inner.forward).parameters.values()
        names.update(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
        inner = next((part for name in _INNER if id(part := getattr(inner, name, None)) not in seen and part), None)
    return frozenset(names) or None


def _vocabulary(model: Any) -> int | None:
    """Tokens that have an embedding."""
    try:
        return getattr(model.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):
        return None


def _has_tokens(batch: Mapping[str, Any]) -> bool:
    """Whether an attention mask is over tokens; it may be over frames of sound."""
    return "input_ids" in batch or "inputs_embeds" in batch


def _is_over(mask: Tensor, ids: Tensor) -> bool:
    """Whether a mask is over the tokens of these ids, or over queries and keys of them."""
    return mask.ndim > 1 and (len(mask), mask.shape[-1]) == tuple(ids.shape)


def _is_one(ids: Tensor) -> bool:
    return bool((ids == ids[0]).all())


def _frames_of(model: Any) -> Callable[[Tensor], Tensor] | None:
    """What makes a mask of frames, [B, S], of one of sound, [B, N], in the models that do so by themselves."""
    find = getattr(model, "_get_feature_vector_attention_mask", None)
    count = getattr(model, "_get_feat_extract_output_lengths", None)
    if find is None or count is None:
        return None
    return lambda mask: find(int(count(torch.tensor(mask.shape[1]))), mask).bool()


def _token(names: Iterable[str], *configs: Any) -> int:
    """The first of these token ids that a configuration has."""
    found = (getattr(config, name, None) for name in names for config in configs)
    return next((token for token in found if isinstance(token, int)), 0)
