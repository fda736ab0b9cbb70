"""What serving does to activations, done to a model in memory: inputs of quantized layers are rounded to their grid."""

from collections.abc import Iterator
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from coldpress.numerics import dynamic_qparams, fake_quantize
from coldpress.quantized import Quantized


@frozen(eq=False)
class InputSimulation:
    """A forward pre-hook that rounds the first argument of a layer to the grid of its scheme.

    Attributes:
        quantized: the scheme, and the scales of static inputs.
    """

    quantized: Quantized

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, with the first one, [..., I], as the serving engine's kernel sees it."""
        return self.rounded(args[0]), *args[1:]

    def rounded(self, x: Tensor) -> Tensor:
        """The input, [..., I], on its grid."""
        kept, inputs = self.quantized, self.quantized.scheme.input_activations
        assert inputs is not None
        factor = None if kept.input_global_scale is None else kept.input_global_scale.to(x.device)
        if inputs.dynamic:
            scale, zero_point = dynamic_qparams(x, inputs, global_scale=factor)
        else:
            assert kept.input_scale is not None
            assert kept.input_zero_point is not None
            wider = torch.promote_types(kept.input_scale.dtype, x.dtype)  # a kernel multiplies by scales in full
            scale, zero_point = kept.input_scale.to(x.device, wider), kept.input_zero_point.to(x.device)
        return fake_quantize(x, scale, zero_point, inputs, global_scale=factor)


def simulate_activations(module: nn.Module, quantized: Quantized) -> None:
    """Round the inputs of `module` from now on, if its scheme quantizes inputs; at most one simulation a module."""
    stop_simulating(module)
    if quantized.scheme.input_activations is not None:
        only_inputs = Quantized(
            quantized.scheme,
            input_scale=quantized.input_scale,
            input_zero_point=quantized.input_zero_point,
            input_global_scale=quantized.input_global_scale,
        )
        module.register_forward_pre_hook(InputSimulation(only_inputs))


def stop_simulating(model: nn.Module) -> None:
    """Remove every simulation from a model or module."""
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, InputSimulation):
                del module._forward_pre_hooks[key]


def simulated(model: nn.Module) -> Iterator[tuple[str, Quantized]]:
    """Name and scheme of every module whose inputs are rounded."""
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, InputSimulation):
                yield name, hook.quantized
