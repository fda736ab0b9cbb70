"""What a router does: how many experts it takes, by which groups, and whether it minds those that it does not take.

Found in the modules around the experts, not by the names of model classes.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    generator, recorder = torch.Generator().manual_seed(0), _Recorder()
    count: Any = experts.count
    trial = _trial(home, experts, recorder, generator)
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


def tells_all_gates(home: nn.Module, experts: nn.Module, hidden: int) -> bool:
    """Whether the weights that a router gives can be had of all experts, by having it take them all.

    Args:
        home: as for `minds_others`, like the others.
        experts: the module of experts.
        hidden: width of its input.
    """
    generator, recorder = torch.Generator().manual_seed(0), _Recorder()
    trial = _trial(home, experts, recorder, generator)
    x = torch.randn(1, _TOKENS, hidden, generator=generator, dtype=torch.float64)
    count: Any = experts.count
    found = gates_of(trial, recorder, count, (x,), {})
    if found is None:
        return False
    sent, every = found
    return bool(((sent - every).abs()[sent > 0] <= 1e-9 * every.max()).all())


Gates = tuple[Tensor, Tensor]
"""Of the experts that tokens are sent to, 0 of others; and of all experts, [T, E] both."""


def gates_of(
    home: nn.Module, experts: nn.Module, count: int, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Gates | None:
    """What weights the router of a module gives experts, of those that are chosen and of all; None where it cannot.

    Nothing of the module is changed afterwards.

    Args:
        home: the module that the experts lie in.
        experts: the module of experts; it is not run.
        count: of experts.
        args: that the home is called with.
        kwargs: that it is called with by name.
    """
    try:
        with torch.no_grad(), _without(home, experts) as recorder:
            sent = recorder.of(home, *args, **kwargs)
            with _taking_all(home, recorder, count):
                every = recorder.of(home, *args, **kwargs)
    except _TROUBLE:
        return None
    if sent is None or every is None or every[1].shape[1] != count or len(sent[0]) != len(every[0]):
        return None
    chosen = torch.zeros_like(every[1]).scatter(1, sent[0], sent[1])
    return chosen, every[1]


@contextmanager
def _without(home: nn.Module, experts: nn.Module) -> Iterator["_Recorder"]:
    """Inside, a recorder stands where experts are."""
    recorder = _Recorder()
    (name,) = [name for name, child in home.named_children() if child is experts]
    home._modules[name] = recorder
    try:
        yield recorder
    finally:
        home._modules[name] = experts


@contextmanager
def _taking_all(home: nn.Module, recorder: nn.Module, count: int) -> Iterator[None]:
    """Inside, a router takes all experts, of all groups."""
    groups = next((vars(one)[key] for one in home.modules() for key in _GROUPS if key in vars(one)), 1)
    new = {**dict.fromkeys(_TOP_K, count), **dict.fromkeys(_TOP_GROUPS, groups)}
    places = [
        (one, key, vars(one)[key])
        for one in home.modules()
        for key in new
        if one is not recorder and type(vars(one).get(key)) is int
    ]
    try:
        for one, key, _ in places:
            vars(one)[key] = new[key]
        yield
    finally:
        for one, key, old in places:
            vars(one)[key] = old


def _trial(home: nn.Module, experts: nn.Module, recorder: "_Recorder", generator: torch.Generator) -> Any:
    """A copy of a module without experts, with random weights in float64."""
    trial = copy.deepcopy(home, {id(experts): recorder})
    for owner, part, tensor in _tensors(trial):
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / max(tensor.shape[-1], 1) ** 0.5
        value = drawn if tensor.is_floating_point() else torch.zeros(tensor.shape, dtype=tensor.dtype)
        _replace(owner, part, value)
    return trial


class _Recorder(nn.Module):
    """Stands where experts are, and notes what they are sent: experts by token, sorted, and their weights, [T, K]."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: tuple[Tensor, Tensor] | None = None

    def of(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor] | None:
        """What a module sends here when it is called with [B, S, H]."""
        self.seen = None
        module(*args, **kwargs)
        return self.seen

    def forward(self, hidden: Tensor, *rest: Tensor) -> Tensor:
        index = next((one for one in rest if not one.is_floating_point()), None)
        weights = next((one for one in rest if one.is_floating_point()), None)
        if index is not None and weights is not None:
            index, weights = index.reshape(-1, index.shape[-1]), weights.reshape(-1, weights.shape[-1])
            order = index.argsort(dim=1)
            self.seen = index.gather(1, order), weights.gather(1, order)
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
