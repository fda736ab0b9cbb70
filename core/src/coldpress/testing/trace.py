"""What a model looks like from outside, so that a plugin's traces on it can be seen afterwards."""

from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from coldpress.attachment import is_attachment_hook

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")


@frozen
class Trace:
    """The outside of a model: what must be the same after a run, whatever the weights are.

    Attributes:
        tensors: name to shape and dtype of parameters and buffers.
        wants_gradient: names of the parameters that require a gradient.
        classes: name to class of every module.
        forwards: modules whose `forward` was replaced on the instance.
        hooks: where hooks are, how many, those of attachments not counted.
        ambient: torch's own settings and the model's mode.
    """

    tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]
    wants_gradient: frozenset[str]
    classes: dict[str, str]
    forwards: frozenset[str]
    hooks: dict[str, int]
    ambient: dict[str, Any]


def trace_of(model: nn.Module) -> Trace:
    """The outside of a model as it is now."""
    modules = dict(model.named_modules())
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    hooks = {
        f"{kind} of {name or 'the model'}": _count(module, kind) for name, module in modules.items() for kind in _HOOKS
    }
    hooks |= {kind: len(getattr(torch_module, kind, ())) for kind in _GLOBAL_HOOKS}
    return Trace(
        tensors={name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors},
        wants_gradient=frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad),
        classes={name: type(module).__name__ for name, module in modules.items()},
        forwards=frozenset(n for n, module in modules.items() if {"forward", "_call_impl"} & vars(module).keys()),
        hooks={place: count for place, count in hooks.items() if count},
        ambient={
            "torch's default dtype": torch.get_default_dtype(),
            "whether gradients are recorded": torch.is_grad_enabled(),
            "the model's training mode": {name for name, module in modules.items() if module.training},
        },
    )


def differences(before: Trace, after: Trace) -> list[str]:
    """What changed, one line each; requirements of gradients have a check of their own."""
    found = []
    for what, old, new in (
        ("tensor", before.tensors, after.tensors),
        ("module", before.classes, after.classes),
        ("hooks: ", before.hooks, after.hooks),
        ("setting: ", before.ambient, after.ambient),
    ):
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) != new.get(name):
                found.append(f"{what} {name}: {old.get(name)} before, {new.get(name)} after")
    found += [f"forward of {name or 'the model'} is not what it was" for name in before.forwards ^ after.forwards]
    return found


def of_what_is_left(before: Trace, after: Trace) -> Trace:
    """The outside of a model before experts were dropped: of the modules that it still has, tensors as short as now."""
    modes = "the model's training mode"
    left = {name: one for name, one in before.tensors.items() if name in after.tensors}
    return evolve(
        before,
        tensors={name: (after.tensors[name][0], dtype) for name, (_, dtype) in left.items()},
        wants_gradient=before.wants_gradient & after.tensors.keys(),
        classes={name: kind for name, kind in before.classes.items() if name in after.classes},
        ambient={**before.ambient, modes: before.ambient[modes] & after.classes.keys()},
    )


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of every parameter and buffer, by name; shared ones under each of their names."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def changed(before: dict[str, Tensor], model: nn.Module) -> list[str]:
    """Names of the tensors whose bits are not what they were."""
    after = weights_of(model)
    return [name for name, old in before.items() if name not in after or not same_bits(old, after[name])]


def same_bits(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors are equal in shape, dtype and every bit; None is equal to None."""
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    raw = [x.contiguous().flatten().view(torch.uint8) if x.numel() else x for x in (a, b)]
    return torch.equal(*raw)


def _count(module: nn.Module, kind: str) -> int:
    hooks = getattr(module, kind, None) or {}
    return sum(not is_attachment_hook(hook) for hook in hooks.values())
