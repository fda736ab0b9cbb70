"""What a router does: how many experts it takes, by which groups, and whether it minds those that it does not take.

Found in the modules around the experts, not by the names of model classes.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

_TOP_K = ("top_k", "num_experts_per_tok", "topk", "num_selected_experts", "moe_k", "moe_topk")
_GROUPS, _TOP_GROUPS = ("n_group", "num_expert_group"), ("topk_group",)
_TOKENS = 256
_TROUBLE = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, NotImplementedError)


@frozen
class Router:
    """How experts are chosen.

    Attributes:
        top_k: experts a token is sent to; None where no module says so.
        groups: of experts, among which the router chooses first; 1 without groups.
        top_groups: groups that a token may be sent to.
        by_token: the parameter that says by a token's id which experts it is sent to; None where the router reads
            activations.
    """

    top_k: int | None
    groups: int = 1
    top_groups: int = 1
    by_token: str | None = None


def read_router(home: nn.Module, experts: nn.Module, vocabulary: int | None) -> Router:
    """The router beside some experts.

    Args:
        home: the module that the experts lie in.
        experts: the module of experts.
        vocabulary: number of token ids.
    """
    modules = [home, *(one for name, one in home.named_children() if one is not experts)]
    modules += [inner for one in modules[1:] for inner in one.modules() if inner is not one]
    configs = [config for one in modules if (config := getattr(one, "config", None)) is not None]
    places = [*modules, *configs]
    tables = [
        name
        for one in modules
        for name, tensor in (*one.named_parameters(recurse=False), *one.named_buffers(recurse=False))
        if not tensor.is_floating_point() and tensor.ndim == 2 and tensor.shape[0] == vocabulary
    ]
    groups = _number(places, _GROUPS) or 1
    return Router(_number(places, _TOP_K), groups, _number(places, _TOP_GROUPS) or groups, next(iter(tables), None))


def minds_others(home: nn.Module, experts: nn.Module, hidden: int) -> bool | None:
    """Whether the weight of a chosen expert depends on experts that are not chosen, as a softmax over all makes it.

    A copy of the module without experts is run on random tokens; then the rows of one expert in what has one for each
    are drawn anew, and tokens that are sent to the same experts as before, and not to that one, are compared.

    Args:
        home: the module that the experts lie in; weights may be on the meta device.
        experts: the module of experts.
        hidden: width of its input.

    Returns:
        None where the module cannot be run by itself.
    """
    generator = torch.Generator().manual_seed(0)
    recorder = _Recorder()
    trial = copy.deepcopy(home, {id(experts): recorder})
    count: Any = experts.count
    for owner, part, tensor in _tensors(trial):
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / max(tensor.shape[-1], 1) ** 0.5
        value = drawn if tensor.is_floating_point() else torch.zeros(tensor.shape, dtype=tensor.dtype)
        _replace(owner, part, value)
    x = torch.randn(1, _TOKENS, hidden, generator=generator, dtype=torch.float64)
    try:
        with torch.no_grad():
            before = recorder.of(trial, x)
            rows = [(o, p, t) for o, p, t in _tensors(trial) if t.ndim == 2 and t.shape[0] == count]
            for owner, part, tensor in rows:
                drawn = torch.randn(tensor.shape[1], generator=generator, dtype=torch.float64)
                _replace(owner, part, torch.cat([drawn[None] / tensor.shape[1] ** 0.5, tensor[1:]]))
            after = recorder.of(trial, x)
    except _TROUBLE:
        return None
    if before is None or after is None or not rows:
        return None
    same = (before[0] == after[0]).all(dim=1) & (before[0] != 0).all(dim=1)  # [T]
    if not bool(same.any()):
        return None
    moved = (before[1][same] - after[1][same]).abs().max() / before[1][same].abs().max()
    return bool(moved > 1e-4)


class _Recorder(nn.Module):
    """Stands where experts are, and notes what they are sent: experts by token, sorted, and their weights, [T, K]."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: tuple[Tensor, Tensor] | None = None

    def of(self, module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """What a module sends here when it is called with x, [1, T, H]."""
        self.seen = None
        module(x)
        return self.seen

    def forward(self, hidden: Tensor, *rest: Tensor) -> Tensor:
        index = next((one for one in rest if not one.is_floating_point()), None)
        weights = next((one for one in rest if one.is_floating_point()), None)
        if index is not None and weights is not None:
            order = index.reshape(_TOKENS, -1).argsort(dim=1)
            self.seen = index.reshape(_TOKENS, -1).gather(1, order), weights.reshape(_TOKENS, -1).gather(1, order)
        return torch.zeros_like(hidden)


def _number(places: list[Any], names: tuple[str, ...]) -> int | None:
    """The first whole number that one of some objects has under one of these names."""
    found = (getattr(place, name, None) for name in names for place in places)
    return next((value for value in found if type(value) is int and value > 0), None)


def _tensors(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for one in module.modules():
        for part, tensor in (*one._parameters.items(), *one._buffers.items()):
            if tensor is not None:
                yield one, part, tensor


def _replace(owner: nn.Module, part: str, value: Tensor) -> None:
    if part in owner._parameters:
        owner._parameters[part] = nn.Parameter(value, requires_grad=False)
    else:
        owner._buffers[part] = value
