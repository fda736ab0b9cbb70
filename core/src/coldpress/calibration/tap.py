"""The tap: records what layers are called with, by hooks that are always removed."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor, nn

from coldpress.attention import AttentionInput, AttentionStates, Tap, attention_tapped
from coldpress.calibration.batch import mask_for, token_masks
from coldpress.errors import CalibrationError, NumericsError
from coldpress.numerics import is_finite, version
from coldpress.routed import Observed, RoutedTokens, routed_tapped
from coldpress.stage import Batch


class StopForward(Exception):  # noqa: N818 - not an error: a forward ends early because the rest is not read
    """Raised by the tap inside a forward, when every observed layer of the stage has been called."""


@frozen(eq=False)
class BatchInputs:
    """What the layers were called with in one batch, padding removed.

    Attributes:
        index: of the batch in the sweep, from 0.
        calls: layer name to keys of `tokens`, in the order of its calls; layers that no token reached are not in it.
        tokens: distinct tensors by key, [T, I] each, [T, H, D] of an attention or [T, E, 2] of experts.
        places: where the tokens of a tensor are among all of the sequences, [T]; of an expert's, and where some are
            padding.
    """

    index: int
    calls: Mapping[str, tuple[int, ...]]
    tokens: Mapping[int, Tensor]
    places: Mapping[int, Tensor] = field(factory=dict)

    def inputs(self) -> dict[str, list[Tensor]]:
        """Layer name to the tensors that it was called with, in the order of its calls."""
        return {name: [self.tokens[key] for key in keys] for name, keys in self.calls.items()}

    def batch(self, names: Iterable[str] | None = None) -> Batch:
        """The inputs as hooks read them, of some layers or of all; calls of one layer are joined."""
        inputs = {}
        for name in self.calls if names is None else names:
            parts = [self.tokens[key] for key in self.calls.get(name, ())]
            if parts:
                inputs[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
        return Batch(self.index, inputs)


@define(eq=False)
class _Call:
    """A call of a layer: the tensor itself, so that no other one can take its place in memory, and its version."""

    name: str
    x: Tensor
    version: int
    rows: "TokenRows | None"
    heads: bool = False  # [B, S, H, D], of an attention


@frozen(eq=False)
class TokenRows:
    """Which tokens of a batch an input of an expert has.

    Attributes:
        places: of each of them among all tokens of the sequences, [T], padding included.
        total: how many tokens these are.
    """

    places: Tensor
    total: int


UNPLACED = TokenRows(torch.empty(0, dtype=torch.long), 0)
"""Of inputs of which nothing says which tokens of the batch they have."""


def mark_rows(x: Tensor, rows: TokenRows) -> Tensor:
    """Attach to an input, [T, I], which tokens of the batch it has, so that padding is left out; returns the input."""
    x.coldpress_rows = rows  # type: ignore[attr-defined]
    return x


def rows_of(x: Tensor) -> TokenRows | None:
    """The rows that `mark_rows` attached to a tensor."""
    return getattr(x, "coldpress_rows", None)


class InputTap:
    """Context in which the inputs of layers, and of attention, are recorded, batch by batch.

    From the second batch on the forward ends, by `StopForward`, in front of the last of the layers, if all of them were
    called exactly once in the first batch and, so far, in the same order in this one.

    Args:
        layers: whose inputs are wanted.
        to_the_end: no forward is ended.
    """

    def __init__(self, layers: Iterable[Observed], *, to_the_end: bool = False) -> None:
        self._layers = tuple(layers)
        self._to_the_end = to_the_end
        self._calls: list[_Call] = []
        self._route: list[str] | None = None  # names in the order of the first batch
        self._hooks = ExitStack()

    def __enter__(self) -> "InputTap":
        with ExitStack() as hooks:
            for layer in self._layers:
                if isinstance(layer, AttentionInput):
                    hooks.enter_context(attention_tapped(layer.module, self._tap(layer)))
                elif isinstance(layer, RoutedTokens):
                    hooks.enter_context(routed_tapped(layer.module, partial(self._record_table, layer.name)))
                else:
                    hooks.callback(layer.module.register_forward_pre_hook(self._recorder(layer.name)).remove)
            self._hooks = hooks.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()
        self._calls.clear()

    def collect(self, index: int, arguments: Mapping[str, Any]) -> BatchInputs:
        """What the layers saw since the last call.

        Args:
            index: of the batch, from 0.
            arguments: what the model was called with; `token_masks` says which of its tokens count.

        Raises:
            NumericsError: an input has NaN or Inf; layer and batch are named.
            CalibrationError: the model changed a tensor in place after it was an input.
        """
        recorded, self._calls = self._calls, []
        if self._route is None:
            self._route = [call.name for call in recorded]
        masks = token_masks(arguments)
        keys: dict[tuple[Any, ...], int] = {}
        tokens: dict[int, Tensor] = {}
        places: dict[int, Tensor] = {}
        calls: dict[str, tuple[int, ...]] = {}
        for call in recorded:
            key = keys.setdefault(_identity(call.x, call.version), len(keys))
            if key not in tokens:
                tokens[key] = _checked(call, masks, index)
                where = _places(call, masks)
                if where is not None:
                    places[key] = where
            if len(tokens[key]):
                calls[call.name] = (*calls.get(call.name, ()), key)
        return BatchInputs(index, calls, tokens, places)

    def _recorder(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(module: nn.Module, args: tuple[Any, ...]) -> None:
            if not args or not isinstance(args[0], Tensor):
                raise CalibrationError(f"{name} is not called with a tensor as its first argument")
            self._record(name, args[0], rows=rows_of(args[0]))

        return record

    def _tap(self, point: AttentionInput) -> Tap:
        def see(module: nn.Module, states: AttentionStates) -> AttentionStates:
            self._record(point.name, getattr(states, point.part).transpose(1, 2), heads=True)  # [B, S, H, D]
            return states

        return see

    def _record_table(self, name: str, table: Tensor) -> None:
        """What experts were sent, [T, E, 2], one row for each token of the sequences, padding included."""
        self._record(name, table, rows=TokenRows(torch.arange(len(table), device=table.device), len(table)))

    def _record(self, name: str, x: Tensor, *, rows: TokenRows | None = None, heads: bool = False) -> None:
        x = x.detach()
        self._calls.append(_Call(name, x, version(x), rows, heads))
        if self._is_enough():
            raise StopForward

    def _is_enough(self) -> bool:
        """Whether every layer was called in this batch, and none will be again as far as the first batch tells."""
        if (
            self._to_the_end
            or self._route is None
            or len(self._calls) != len(self._layers)
            or len(self._route) != len(self._layers)
        ):
            return False
        names = [call.name for call in self._calls]
        return names == self._route and len(set(names)) == len(names)


def _checked(call: _Call, masks: tuple[Tensor, ...], index: int) -> Tensor:
    """The tokens of a call, [T, I], if they are sound."""
    if version(call.x) != call.version:
        raise CalibrationError(f"the model changes the input of {call.name} in place after it was used: not supported")
    if call.heads:
        x = _tokens_of_heads(call.x, masks)
    else:
        refuse_unplaced(call.name, call.rows, masks)
        x = _tokens(call.x, masks) if call.rows is None else _marked(call.x, call.rows, masks)
    if not is_finite(x):
        raise NumericsError(f"the input of {call.name} has NaN or Inf in batch {index}; nothing was written")
    return x


def refuse_unplaced(name: str, rows: TokenRows | None, masks: tuple[Tensor, ...]) -> None:
    """Refuse padding where nothing says which of the tokens that a layer sees are padding.

    Raises:
        CalibrationError: names the layer.
    """
    if rows is UNPLACED and any(not bool(mask.all()) for mask in masks):
        raise CalibrationError(
            f"{name} sees tokens sorted by expert, so which of them are padding is not known: calibrate with batches "
            "without padding or loss mask (batch_size=1), or ignore the layer"
        )


def _places(call: _Call, masks: tuple[Tensor, ...]) -> Tensor | None:
    """Where the tokens of a call that count are among all of the sequences, [T]; None where all count, in order."""
    if call.rows is not None:
        return _marked(call.rows.places, call.rows, masks)
    mask = None if call.heads else mask_for(call.x, masks)
    return None if mask is None else mask.flatten().nonzero()[:, 0].to(call.x.device)


def _identity(x: Tensor, version: int) -> tuple[Any, ...]:
    """Equal for two tensors, both alive, that are the same numbers in the same memory."""
    return x.data_ptr(), x.shape, x.stride(), x.dtype, x.device, version


def _marked(x: Tensor, rows: TokenRows, masks: tuple[Tensor, ...]) -> Tensor:
    """Those of some tokens of the batch, [T, I], that count."""
    if rows is UNPLACED:  # all of them
        return x
    mask = mask_for(x.new_empty(rows.total, 0), masks)
    return x if mask is None else x[mask.flatten().to(x.device)[rows.places]]


def _tokens_of_heads(x: Tensor, masks: tuple[Tensor, ...]) -> Tensor:
    """What an attention is called with, [B, S, H, D], of the tokens that count, [T, H, D]."""
    mask = mask_for(x, masks)
    return x.flatten(0, 1) if mask is None else x[mask.to(x.device)]


def _tokens(x: Tensor, masks: tuple[Tensor, ...]) -> Tensor:
    """The tokens of a layer's input that count, [T, I].

    Inputs [B, S, ..., I], and [B * S, I] as routers of experts flatten them, have padding; other shapes are flattened.
    """
    if not x.is_floating_point():  # an embedding is called with token ids
        x = x.unsqueeze(-1)
    if x.ndim < 2:
        return x.reshape(1, -1)
    mask = mask_for(x, masks)
    if mask is None:
        return x.flatten(0, -2)
    return x[mask.to(x.device)].flatten(0, -2) if x.ndim > 2 else x[mask.flatten().to(x.device)]
