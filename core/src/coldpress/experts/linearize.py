"""Linearizing: every fused experts module of a model is replaced by one of linear layers."""

import logging
from collections.abc import Mapping

import torch
from attrs import field, frozen
from torch import Tensor, nn

from coldpress.experts.few_tokens import FewTokens
from coldpress.experts.grouped import grouped_layout
from coldpress.experts.layout import Layout, slot_choices
from coldpress.experts.linear import LinearExperts
from coldpress.experts.probe import find_layout

log = logging.getLogger(__name__)

_NOTED = FewTokens()


@frozen
class Linearized:
    """What became of the fused experts of a model.

    Attributes:
        replaced: names of the modules whose experts are linear layers now.
        refused: names of the others, and why it is not known how they compute.
    """

    replaced: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(factory=dict)


def linearize_experts(model: nn.Module, *, all_experts: bool = True, few_tokens: FewTokens = _NOTED) -> Linearized:
    """Replace fused experts by linear layers, `experts.0.gate_proj`, `.up_proj`, `.down_proj`, ..., in place.

    A module is taken for fused experts if it holds two or three tensors with three dimensions whose shapes are those
    of such projections, or matrices of all experts; how it computes is found by probing.  One that holds a single
    tensor is, if it multiplies groups of tokens by its parts.  What the model says is unchanged.
    Weights are copied, and the fused ones freed, one module after the other.

    Args:
        model: any model; its weights may be on the meta device.
        all_experts: while they are watched, experts are shown every token, not only those that the router sends them;
            also for experts that are linear layers already.
        few_tokens: what is done about experts that saw few tokens.
    """
    known: dict[object, Layout | str] = {}
    replaced, refused = [], {}
    for name, module in list(model.named_modules()):
        if not name or isinstance(module, LinearExperts):
            continue
        single = next(slot_choices(module), None) is None
        if single and grouped_layout(module) is None:
            continue
        if "forward" in vars(module):
            refused[name] = (
                "its forward was replaced on the instance, by a patch or hooks of accelerate (see its "
                "remove_hook_from_module), and would be lost"
            )
            continue
        shapes = {part: tuple(tensor.shape) for part, tensor in module.named_parameters(recurse=False)}
        kind = (type(module), tuple(shapes.items()))
        if kind not in known:
            with torch.no_grad():
                known[kind] = grouped_layout(module) or find_layout(module)
        layout = known[kind]
        if isinstance(layout, str):
            refused[name] = layout
            continue
        parent, _, last = name.rpartition(".")
        with torch.no_grad():
            model.get_submodule(parent)._modules[last] = LinearExperts(module, layout)
        replaced.append(name)
    for experts in linear_experts(model).values():
        experts.all_experts, experts.few = all_experts, few_tokens
    if replaced:
        log.info("%d modules of fused experts are linear layers now", len(replaced))
    return Linearized(tuple(replaced), refused)


def linear_experts(model: nn.Module) -> dict[str, LinearExperts]:
    """The modules of a model whose experts are linear layers, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LinearExperts)}


def fused_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model as if its experts had never been split."""
    tensors: dict[str, Tensor] = dict(model.state_dict())
    for name, experts in linear_experts(model).items():
        for number in range(experts.count):
            for part in [part for part in tensors if part.startswith(f"{name}.{number}.")]:
                del tensors[part]
        tensors |= {f"{name}.{part}": tensor for part, tensor in experts.fused_tensors().items()}
    return tensors
