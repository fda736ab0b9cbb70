"""Experts of a model that is about to be compressed: linear layers where that is possible, an error or a line else."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from coldpress.errors import ModelError
from coldpress.experts import FewTokens, linearize_experts
from coldpress.experts.fused import NO_EXPERTS, expert_parameters, fused_weights
from coldpress.experts.layout import slot_choices
from coldpress.experts.linear import LinearExperts
from coldpress.layer_report import LayerReport
from coldpress.modifier import Modifier
from coldpress.stage import Layer, class_names, find_layers
from coldpress.state import State

log = logging.getLogger(__name__)

SHARE = 0.25
"""Of a model's weights: if more of them are in fused tensors that cannot be split but are meant, that is an error."""


def open_experts(
    model: Any,
    modifiers: Sequence[Modifier],
    *,
    all_experts: bool,
    few_tokens: FewTokens = FewTokens(),  # noqa: B008
) -> Mapping[str, str]:
    """Make linear layers of a model's fused experts.

    Args:
        model: changed in place.
        modifiers: of the recipe.
        all_experts: experts are shown every token while they are calibrated.
        few_tokens: what is done about experts that saw few.

    Returns:
        Names of modules whose fused tensors stay as they are, and why.

    Raises:
        ModelError: they hold a large part of the weights, and the recipe does not ignore them.
    """
    found = linearize_experts(model, all_experts=all_experts, few_tokens=few_tokens)
    refused = {**found.refused, **_of_other_shapes(model)}
    sizes = {name: sum(t.numel() for t in _matrices(model.get_submodule(name)).values()) for name in refused}
    meant = [name for name in refused if any(_means(modifier, name, model) for modifier in modifiers)]
    if sum(sizes[name] for name in meant) > SHARE * sum(parameter.numel() for parameter in model.parameters()):
        first = meant[0]
        raise ModelError(
            f"{len(meant)} modules hold experts in fused tensors that cannot be split into linear layers, so that they "
            f"would stay uncompressed; the first is {first}: {refused[first]}. To compress the rest of the model, "
            f"ignore them, for example with ignore=[{type(model.get_submodule(first)).__name__!r}]"
        )
    for name, reason in refused.items():
        log.warning("%s stays as it is: %s", name, reason)
    return refused


def report_refused(state: State, refused: Mapping[str, str]) -> None:
    """Give fused tensors that stay as they are a line in the report."""
    for name, reason in refused.items():
        module = state.model.get_submodule(name)
        rows = sum(tensor.numel() // tensor.shape[-1] for tensor in _matrices(module).values())
        width = next(iter(_matrices(module).values())).shape[-1]
        state.report[name] = LayerReport(
            name, type(module).__name__, (rows, width), reason=f"fused tensors that cannot be split: {reason}"
        )


def _of_other_shapes(model: nn.Module) -> dict[str, str]:
    """Modules whose weights are experts in a tensor of their own, one a module, and why they stay as they are."""
    found = {}
    for name, module in model.named_modules():
        other = isinstance(module, LinearExperts | NO_EXPERTS | ParametrizationList)
        if other or next(slot_choices(module), None) is not None:
            continue
        joint = list(fused_weights(module))
        if "Expert" in type(module).__name__:
            joint = list(_matrices(module)) if not any(find_layers([(name, module)])) else []
        if joint:
            found[name] = f"its weights are in a joint tensor of their own ({', '.join(joint)})"
    return found


def _matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module itself, or of the child that holds its experts, with two dimensions or more."""
    return {name: tensor for name, tensor in expert_parameters(module).items() if tensor.ndim > 1}


def _means(modifier: Modifier, name: str, model: nn.Module) -> bool:
    """Whether a modifier would compress the experts of a module if they were linear layers."""
    own = class_names(model.get_submodule(name))
    lasts = ("up_proj", "down_proj", "proj")
    experts = [Layer(f"{name}.0.{last}", nn.Identity(), ("Linear", "Module")) for last in lasts]
    ignored = Layer(name, nn.Identity(), own).matches(modifier.ignore)
    return not ignored and any(e.matches(modifier.patterns()) and not e.matches(modifier.ignore) for e in experts)
