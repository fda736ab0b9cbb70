"""Routers: linear layers that say which experts a token is sent to, or how much a shared expert counts."""

from torch import nn

from coldpress.experts.fused import fused_weights
from coldpress.experts.linear import LinearExperts
from coldpress.stage import find_layers


def router_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers beside experts whose outputs are one for each expert, or one.

    Those of shared experts are none: they lie in a module that has several layers.
    """
    found = []
    for name, module in model.named_modules():
        sizes = {child: _experts(part, child) for child, part in module.named_children()}
        count = max(sizes.values(), default=0)
        if count < 2:
            continue
        for child, part in module.named_children():
            layers = list(find_layers([(f"{name}.{child}", part), *_inside(f"{name}.{child}", part)]))
            if not sizes[child] and len(layers) == 1 and layers[0].weight.shape[0] in (1, count):
                found.append(layers[0].name)
    return found


def _inside(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(f"{name}.{inner}", part) for inner, part in module.named_modules() if inner]


def _experts(module: nn.Module, name: str) -> int:
    """How many experts a module holds; 0 when it holds none."""
    if isinstance(module, LinearExperts):
        return module.count
    if isinstance(module, nn.ModuleList | nn.ModuleDict) and "expert" in name:
        return len(module)
    return max((tensor.shape[0] for tensor in fused_weights(module).values()), default=0)
