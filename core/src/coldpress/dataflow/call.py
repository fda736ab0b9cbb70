"""What a block is called with: captured once from a tiny batch, handed out afresh for every run."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from coldpress.errors import ModelError


@frozen(eq=False)
class Call:
    """The arguments of one call of a block."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def fresh(self, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A copy, so that a block that writes into its arguments spoils nothing; floating tensors in `dtype`.

        Tensors come to the CPU; those on the meta device are drawn, the same at every call.
        """
        args, kwargs = _copied((self.args, self.kwargs), dtype, {})
        return args, kwargs


class _EnoughError(Exception):
    """Leaves the model's forward once every wanted call was seen."""


def capture(model: nn.Module, names: Sequence[str], batch: Mapping[str, Any]) -> dict[str, Call]:
    """The first call of each named module when the model runs on `batch`; names that are never called are left out.

    Raises:
        ModelError: the model refuses the batch.
    """
    seen: dict[str, Call] = {}

    def watch(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name not in seen:
            seen[name] = Call(*_copied((args, kwargs), None, {}))
        if len(seen) == len(names):
            raise _EnoughError

    handles = [
        model.get_submodule(n).register_forward_pre_hook(lambda _, a, k, n=n: watch(n, a, k), with_kwargs=True)
        for n in names
    ]
    try:
        with torch.no_grad():
            model(**{**batch, **_without_cache(model)})
    except _EnoughError:
        pass
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, NotImplementedError) as e:
        if len(seen) == 0:
            raise ModelError(f"{type(model).__name__} cannot run on a batch of {sorted(batch)}: {e}") from e
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _without_cache(model: nn.Module) -> dict[str, bool]:
    parameters = inspect.signature(model.forward).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {"use_cache": False} if open_ended or "use_cache" in parameters else {}


def _copied(value: Any, dtype: torch.dtype | None, memo: dict[int, Any]) -> Any:
    """A deep copy that keeps aliases, leaves modules alone and casts floating tensors."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Tensor):
        new: Any = value.detach().clone() if dtype is None else _tensor(value.detach(), dtype)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        new = type(value)(*(_copied(v, dtype, memo) for v in value))
    elif type(value) in (tuple, list):
        new = type(value)(_copied(v, dtype, memo) for v in value)
    elif type(value) is dict:
        new = {k: _copied(v, dtype, memo) for k, v in value.items()}
    elif value is None or callable(value) or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        new = value
    else:
        new = copy.deepcopy(value)
    memo[id(value)] = new
    return new


def _tensor(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy on the CPU; what is on the meta device becomes noise, zeros (integers) or True."""
    if not value.is_meta:
        return value.to("cpu", dtype if value.is_floating_point() else None, copy=True)
    if value.is_floating_point():
        return torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()), dtype=dtype)
    return torch.full(value.shape, value.dtype is torch.bool, dtype=value.dtype)
