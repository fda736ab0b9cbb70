"""Copies of modules whose forwards were replaced on the instance, by a patch or by hooks of a library.

    old = mlp.forward
    mlp.forward = lambda x: old(x) / 2      a copy of `mlp` has this function too, and it calls the old `mlp`

`deepcopy` takes functions as they are; here a copy gets a function that calls the copy.
"""

import copy
from collections.abc import Mapping
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any, TypeVar

from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


def deep_copy(module: _Module, memo: dict[int, Any] | None = None) -> _Module:
    """As `copy.deepcopy`; what stands on instances as `forward` calls the copies of what it called.

    Args:
        module: is not changed.
        memo: id of something inside of it to what stands for that in the copy.
    """
    memo = {} if memo is None else memo
    new = copy.deepcopy(module, memo)
    for inner in new.modules():
        forward = vars(inner).get("forward")
        if forward is not None:
            vars(inner)["forward"] = _rebound(forward, memo, {})
    return new


def _rebound(value: Any, memo: Mapping[int, Any], done: dict[int, Any]) -> Any:
    """A callable, or what one holds, with the copies of modules in their places."""
    if id(value) in done:
        return done[id(value)]
    plain = getattr(value, "_torchdynamo_orig_callable", None)
    if plain is not None:  # what `torch.compile` was given
        return _rebound(plain, memo, done)
    if isinstance(value, nn.Module):
        return memo.get(id(value), value)
    if isinstance(value, MethodType):
        owner = memo.get(id(value.__self__), value.__self__)
        return MethodType(_rebound(value.__func__, memo, done), owner)
    if isinstance(value, partial):
        args = [_rebound(one, memo, done) for one in value.args]
        kwargs = {name: _rebound(one, memo, done) for name, one in value.keywords.items()}
        return partial(_rebound(value.func, memo, done), *args, **kwargs)
    if isinstance(value, FunctionType):
        return _rebound_function(value, memo, done)
    return value


def _rebound_function(value: FunctionType, memo: Mapping[int, Any], done: dict[int, Any]) -> FunctionType:
    done[id(value)] = value  # where it holds itself
    named = {name: value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__}
    kinds = (MethodType, nn.Module)
    named = {name: _rebound(one, memo, done) for name, one in named.items() if isinstance(one, kinds)}
    changed = any(one is not value.__globals__[name] for name, one in named.items())
    if value.__closure__ is None and value.__defaults__ is None and not changed:
        return value
    cells = tuple(CellType(_rebound(cell.cell_contents, memo, done)) for cell in value.__closure__ or ())
    space = {**value.__globals__, **named} if changed else value.__globals__
    defaults = tuple(_rebound(one, memo, done) for one in value.__defaults__ or ()) or None
    new = FunctionType(value.__code__, space, value.__name__, defaults, cells or None)
    new.__kwdefaults__ = value.__kwdefaults__
    new.__dict__.update(value.__dict__)
    return new
