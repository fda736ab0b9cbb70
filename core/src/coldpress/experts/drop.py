"""Fewer experts: a model becomes, in place, the one that its class builds of a configuration with fewer of them.

What has to change is found by comparing the model with that one, which needs no weights: tensors that have one entry
for each expert (routers, their biases and corrections) are those whose shapes differ, numbers of experts that modules
remember are those that differ.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from coldpress.errors import ModelError
from coldpress.experts.fused import fused_weights
from coldpress.experts.linear import LinearExperts
from coldpress.experts.linearize import linear_experts

Build = Callable[[Any], nn.Module]
"""Makes a model, without weights, of a configuration."""


@frozen(eq=False)
class Rows:
    """Which entries of a tensor are kept.

    Attributes:
        dim: along which there is one entry for each expert.
        kept: their numbers.
    """

    dim: int
    kept: tuple[int, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """The entries of a tensor as it was."""
        return tensor.index_select(self.dim, torch.tensor(self.kept, device=tensor.device))


@frozen(eq=False)
class Dropped:
    """Where the tensors of a model with fewer experts come from.

    Attributes:
        renamed: name of each tensor of an expert to what it was called before.
        rows: name of each tensor that lost entries to those that it has kept.
    """

    renamed: Mapping[str, str]
    rows: Mapping[str, Rows]


def drop_experts(model: Any, kept: Mapping[str, Sequence[int]], build: Build) -> Dropped:
    """Drop experts of a model whose experts are linear layers; configuration, routers and numbers follow.

    Args:
        model: changed in place; its weights may be on the meta device.
        kept: name of each module of experts that tokens are routed to, all of the model's, to the numbers of those that
            stay, in order.
        build: of the model's class.

    Raises:
        ModelError: its class does not build a model of that shape; says what differs.
    """
    experts, shrunk = routed_experts(model), _shrunk(model, kept, build)
    _apply(model.config, shrunk.changes, shrunk.count)
    renamed: dict[str, str] = {}
    for name, module in experts.items():
        inside = [part for part, _ in module.get_submodule("0").named_parameters()]
        renamed |= {
            f"{name}.{new}.{part}": f"{name}.{old}.{part}" for new, old in enumerate(kept[name]) for part in inside
        }
        module.keep(kept[name])
    for name, some in shrunk.rows.items():
        _keep_rows(model, name, some)
    _follow_numbers(model, shrunk.model, experts)
    return Dropped(renamed, shrunk.rows)


def check_droppable(model: Any, count: int, build: Build) -> None:
    """Refuse what `drop_experts` would refuse, whichever experts stay.

    Args:
        model: whose experts are linear layers; its weights may be on the meta device.
        count: how many of each module would stay.
        build: of the model's class.

    Raises:
        ModelError: its class does not build a model of that shape; says what differs.
    """
    _shrunk(model, {name: range(count) for name in routed_experts(model)}, build)


@frozen(eq=False)
class _Shrunk:
    """A model with fewer experts beside the one that it comes from.

    Attributes:
        model: without weights.
        count: of experts in each module.
        changes: settings of the configuration that say so, as `expert_counts` gives them.
        rows: as in `Dropped`.
    """

    model: nn.Module
    count: int
    changes: Sequence[tuple[int, str]]
    rows: Mapping[str, Rows]


def _shrunk(model: Any, kept: Mapping[str, Sequence[int]], build: Build) -> _Shrunk:
    experts = routed_experts(model)
    before, after = _counts(experts, kept)
    changes = expert_counts(model.config, before, after, build, list(experts))
    config = deepcopy(model.config)
    _apply(config, changes, after)
    small = build(config)
    return _Shrunk(small, after, changes, _rows(model, small, kept, before, after))


def routed_experts(model: nn.Module) -> dict[str, LinearExperts]:
    """The modules of experts whose number may change: tokens are routed to them, and not all to all."""
    return {name: module for name, module in linear_experts(model).items() if module.layout.is_routed}


def expert_counts(config: Any, before: int, after: int, build: Build, names: Sequence[str]) -> list[tuple[int, str]]:
    """The settings of a configuration that say how many experts there are: number of the part of it, and key.

    Each number of that size whose key speaks of experts is tried by building the model with another one.

    Raises:
        ModelError: there is none.
    """
    found = []
    for place, part in enumerate(_parts(config)):
        for key, value in part.to_dict().items():
            if type(value) is not int or value != before or "expert" not in key:
                continue
            changed = deepcopy(config)
            setattr(list(_parts(changed))[place], key, after)
            try:
                small = build(changed)
                sizes = {_count(small.get_submodule(name)) for name in names}
            except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError, IndexError):
                continue
            if sizes == {after}:
                found.append((place, key))
    if not found:
        raise ModelError(
            f"no setting of the configuration says that there are {before} experts (of those whose names speak of "
            "experts), so a checkpoint with fewer cannot be described: experts of this model cannot be dropped"
        )
    return found


def _apply(config: Any, changes: Sequence[tuple[int, str]], count: int) -> None:
    parts = list(_parts(config))
    for place, key in changes:
        setattr(parts[place], key, count)


def _parts(config: Any) -> Iterator[Any]:
    """A configuration and those inside of it."""
    yield config
    for name in getattr(config, "sub_configs", None) or {}:
        inside = getattr(config, name, None)
        if inside is not None and hasattr(inside, "to_dict"):
            yield from _parts(inside)


def _counts(experts: Mapping[str, LinearExperts], kept: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """How many experts each module has, and will have.

    Raises:
        ModelError: they differ from module to module, for which configurations have one number only.
    """
    before, after = {module.count for module in experts.values()}, {len(kept.get(name, ())) for name in experts}
    if len(before) != 1 or len(after) != 1:
        raise ModelError(
            "a configuration has one number of experts for all layers: drop as many of each, of models that have as "
            f"many in each (there are {_spread(before)}, and {_spread(after)} would stay)"
        )
    return before.pop(), after.pop()


def _spread(counts: set[int]) -> str:
    return " or ".join(map(str, sorted(counts)))


def _count(module: nn.Module) -> int:
    """How many experts a fused module has."""
    return min(tensor.shape[0] for tensor in fused_weights(module).values())


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor but those of experts, whether or not it is saved."""
    homes = tuple(f"{name}." for name in linear_experts(model))
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    return {name: tensor for name, tensor in own.items() if not name.startswith(homes)}


def _rows(
    model: nn.Module, small: nn.Module, kept: Mapping[str, Sequence[int]], before: int, after: int
) -> dict[str, Rows]:
    """The tensors that have one entry for each expert.

    Raises:
        ModelError: the smaller model differs in something else.
    """
    experts, found = linear_experts(model), {}
    theirs = {
        **dict(small.named_parameters(remove_duplicate=False)),
        **dict(small.named_buffers(remove_duplicate=False)),
    }
    ours, routed = _tensors(model), routed_experts(model)
    fused = {
        f"{name}.{part}": shape
        for name, one in experts.items()
        for part, shape in one.shapes_of(after if name in routed else one.count).items()
    }
    lost = (ours.keys() | fused.keys()) ^ theirs.keys()
    if lost:
        raise ModelError(f"a {type(model).__name__} with {after} experts of {before} has other tensors: {min(lost)}")
    for name, shape in fused.items():
        if tuple(theirs[name].shape) != shape:
            raise ModelError(f"{name} of a model with {after} experts would have the shape {tuple(theirs[name].shape)}")
    for name, tensor in ours.items():
        pairs = list(zip(tensor.shape, theirs[name].shape, strict=True))
        dims = [dim for dim, (a, b) in enumerate(pairs) if a != b]
        if not dims:
            continue
        if len(dims) > 1 or pairs[dims[0]] != (before, after):
            raise ModelError(
                f"{name} is {tuple(tensor.shape)}, and {tuple(theirs[name].shape)} with {after} experts: which part of "
                "it belongs to which expert is not known"
            )
        found[name] = Rows(dims[0], tuple(kept[_nearest(name, routed)]))
    return found


def _nearest(name: str, experts: Mapping[str, LinearExperts]) -> str:
    """The module of experts that a tensor lies beside: the one whose name begins as the tensor's does for longest."""
    parts = name.split(".")

    def common(other: str) -> int:
        same = [a == b for a, b in zip(parts, other.split("."), strict=False)]
        return same.index(False) if False in same else len(same)

    return max(experts, key=common)


def _keep_rows(model: nn.Module, name: str, rows: Rows) -> None:
    """Shorten a parameter or buffer, in memory or on the meta device."""
    owner, _, part = name.rpartition(".")
    module = model.get_submodule(owner)
    old: Any = module._parameters.get(part, module._buffers.get(part))
    new = rows.of(old.detach()).contiguous()
    if part in module._parameters:
        module._parameters[part] = nn.Parameter(new, requires_grad=old.requires_grad)
    else:
        module._buffers[part] = new


def _follow_numbers(model: nn.Module, small: nn.Module, experts: Mapping[str, LinearExperts]) -> None:
    """Give modules around experts, and those that the experts replaced, the numbers that the smaller model has."""
    theirs = dict(small.named_modules())
    homes = {name.rpartition(".")[0] for name in experts}
    for name, module in model.named_modules():
        if any(name == home or name.startswith(f"{home}.") for home in homes) and name in theirs:
            _copy_numbers(module, theirs[name])
    for name, module in experts.items():
        first = next(module.experts())
        _copy_numbers(first._mixing.fused, theirs[name])


def _copy_numbers(module: nn.Module, other: nn.Module) -> None:
    for key, value in vars(other).items():
        if not key.startswith("_") and type(value) is int and type(vars(module).get(key)) is int:
            vars(module)[key] = value
