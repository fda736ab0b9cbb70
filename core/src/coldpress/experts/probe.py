"""Probing: which layout an experts module has, found by computing with it on random numbers in float64."""

import inspect
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from copy import copy, deepcopy
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from coldpress.dataflow.product_trace import ProductTrace
from coldpress.experts.fused import expert_parameters, fused_weights, stacked
from coldpress.experts.layout import Layout, argument_orders, layouts
from coldpress.experts.linear import LinearExperts

TOLERANCE = 1e-10
"""Largest difference of two outputs, over the largest output, that a layout may leave."""

_TOKENS = 12
_FEW = 3  # experts that a stand-in has: enough to tell them apart
_ALL = 2**24  # weights of a module, of which a stand-in with every expert is tried too
_TROUBLE = (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError, AssertionError)


def find_layout(module: nn.Module) -> Layout | str:
    """How a fused experts module computes, or why that is not known.

    It is found with random weights, so those of the module may be on the meta device; what its code casts to float32 is
    computed in float64 like the rest.
    """
    with ProductTrace(()):
        return _find_layout(module)


def _find_layout(module: nn.Module) -> Layout | str:
    weights, own = fused_weights(module), expert_parameters(module)
    counts = {name: weights.get(name, tensor).shape[0] for name, tensor in own.items()}
    if len(set(counts.values())) > 1:
        sizes = ", ".join(f"{name} {count}" for name, count in counts.items())
        return f"its tensors are of different numbers of experts ({sizes})"
    others = [name for name, tensor in own.items() if name not in weights and tensor.ndim != 2]
    if others:
        return f"it has weights of its own that belong to no projection ({', '.join(others)})"
    count = next(iter(counts.values()))
    reason = f"its forward takes {_arguments(module)} arguments"
    known = False  # in which order the forward takes its arguments
    small = sum(tensor.numel() for tensor in weights.values()) <= _ALL
    for few in dict.fromkeys((min(_FEW, count), count if small else min(_FEW, count))):
        stand_in = _stand_in(module, few)
        for order in argument_orders(_arguments(module)):
            try:
                trials = list(_trials(stand_in, order, few, count))
            except _TROUBLE as error:
                reason = reason if known else f"its forward refuses a trial: {_first_line(error)}"
                continue
            known = True
            for layout in layouts(stand_in):
                if _agrees(stand_in, layout, order, trials):
                    return Layout(layout.slots, layout.mixing, layout.after, order)
            reason = "no layout of gate, up and down that fits its tensors gives what its forward computes"
    return reason


Trial = tuple[tuple[Tensor, ...], Tensor]
"""Arguments of the forward and what it said."""


def _trials(stand_in: nn.Module, order: tuple[str, ...], few: int, count: int) -> Iterator[Trial]:
    """Random tokens, small and large, and what the module makes of them; also with a token that no expert gets."""
    generator = torch.Generator().manual_seed(0)
    hidden_dims = {size for tensor in fused_weights(stand_in).values() for size in tensor.shape[1:]}
    for hidden, rows in product(sorted(hidden_dims), ((), (1,))):  # tokens in a row, or as a batch of one sequence
        try:
            arguments = _arguments_of(order, hidden, few, generator)
            arguments["hidden"] = arguments["hidden"].reshape(*rows, -1, hidden)
            output = stand_in(*arguments.values())
        except _TROUBLE:
            continue
        if output.shape != arguments["hidden"].shape:
            continue
        yield tuple(arguments.values()), output
        if "index" in arguments:
            arguments["index"] = arguments["index"].clone()
            arguments["index"][0, 0] = count  # what expert parallelism sends to no expert
            with suppress(*_TROUBLE):
                yield tuple(arguments.values()), stand_in(*arguments.values())
        return
    raise ValueError("tokens of no width that its tensors have are accepted")


def _arguments_of(order: tuple[str, ...], hidden: int, few: int, generator: torch.Generator) -> dict[str, Tensor]:
    each = min(2, few)
    tokens = _TOKENS * few if order == ("hidden",) else _TOKENS
    x = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64)
    x[1::2] *= 20  # beyond what a module may clamp
    index = torch.rand(tokens, few, generator=generator).argsort(dim=1)[:, :each]
    each = each if "index" in order else few  # without an index all of them
    weights = torch.rand(tokens, each, generator=generator, dtype=torch.float64) + 0.5
    values = {"hidden": x, "index": index, "weights": weights}
    return {name: values[name] for name in order}


def _agrees(stand_in: nn.Module, layout: Layout, order: tuple[str, ...], trials: list[Trial]) -> bool:
    linear = LinearExperts(stand_in, Layout(layout.slots, layout.mixing, layout.after, order), copy=False)
    try:
        return all(_is_close(linear(*arguments), output) for arguments, output in trials)
    except _TROUBLE:
        return False


def _is_close(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    return bool((ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max().clamp(min=1e-6))


def _stand_in(module: nn.Module, few: int) -> Any:
    """The module with few experts, random weights in float64, its own plain forward, and no hooks."""
    generator = torch.Generator().manual_seed(1)
    stand_in: Any = copy(module)
    stand_in.__dict__ = {key: value for key, value in vars(module).items() if key not in ("forward", "_old_forward")}
    for key, value in vars(module).items():
        if key.endswith("_hooks") or key.endswith("_kwargs"):
            stand_in.__dict__[key] = OrderedDict() if isinstance(value, OrderedDict) else value
    stand_in._parameters = {
        name: nn.Parameter(_noise((few, *tensor.shape[1:]), generator), requires_grad=False)
        for name, tensor in module.named_parameters(recurse=False)
    }
    stand_in._buffers = {name: tensor.double() for name, tensor in module.named_buffers(recurse=False)}
    holder, count = stacked(module)
    stand_in._modules = {
        name: _in_float64(child, generator) if name != holder else _with_few(child, few / count, generator)
        for name, child in module.named_children()
    }
    if holder:
        counts = {key: few for key, value in vars(module).items() if "expert" in key and value == count}
        stand_in.__dict__.update(counts)
    config: Any = getattr(module, "config", None)
    if config is not None:
        stand_in.config = deepcopy(config)
        stand_in.config._experts_implementation = "eager"
    return stand_in.eval()


def _in_float64(child: nn.Module, generator: torch.Generator) -> nn.Module:
    new = deepcopy(child).double()
    for part in new.modules():
        for name, tensor in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(1 + 0.1 * _noise(tuple(tensor.shape), generator), requires_grad=False))
    return new


def _with_few(child: nn.Module, share: float, generator: torch.Generator) -> nn.Module:
    """A module that holds the matrices of all experts, with a share of their rows."""
    new = copy(child)
    sizes = {name: (round(len(one) * share), one.shape[1]) for name, one in child.named_parameters(recurse=False)}
    drawn = {name: _noise((1, *size), generator)[0] for name, size in sizes.items()}
    new._parameters = {name: nn.Parameter(matrix, requires_grad=False) for name, matrix in drawn.items()}
    new._modules = {name: _in_float64(inner, generator) for name, inner in child.named_children()}
    return new


def _noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    size: float = shape[-1] ** 0.5 if len(shape) > 2 else 1.0
    return torch.randn(shape, generator=generator, dtype=torch.float64) / size


def _arguments(module: nn.Module) -> int:
    return len(inspect.signature(module.forward).parameters)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
