"""A model on the meta device, made able to run a tiny batch in the memory of one block.

    embeddings: rows that share memory      block: drawn when called, dropped when done      head: never reached

The weights are random, which is all that capturing the arguments of blocks needs: probing draws its own.
"""

from collections.abc import Sequence

import torch
from torch import nn

from coldpress.attachment import is_attachment_hook
from coldpress.dataflow.rebound import deep_copy

_RECORDS = "_output_capturing_hooks_installed"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_meta(model: nn.Module) -> bool:
    """Whether any parameter has no data."""
    return any(p.is_meta for p in model.parameters())


def skeleton(model: nn.Module, blocks: Sequence[str]) -> nn.Module:
    """A copy with the same classes and names, float32, whose modules get random weights when they are called."""
    new = deep_copy(model).float().eval()
    generator = torch.Generator().manual_seed(0)
    for name, module in new.named_modules():
        drop_hooks(module)
        if name in blocks:
            module.register_forward_pre_hook(lambda m, _: fill(m, generator))
            module.register_forward_hook(lambda m, *_: _drop(m))
        elif not any(name.startswith(b + ".") for b in blocks):
            _fill_buffers(module, generator)
            module.register_forward_pre_hook(lambda m, _: _fill_own(m, generator))
    return new


def drop_hooks(module: nn.Module) -> None:
    """Make a copied module compute what it is: nothing is suspended, fetched or recorded; attachments stay."""
    vars(module).pop("_call_impl", None)  # a pipeline's, which calls the original
    vars(module).pop(_RECORDS, None)  # so that transformers hooks the copy when it is asked for hidden states
    for hooks in _HOOKS:
        found = getattr(module, hooks)
        for key in [key for key, hook in found.items() if not is_attachment_hook(hook)]:
            del found[key]


def fill(module: nn.Module, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> None:
    """Draw everything inside a module that has no data: weights normal with unit gain, buffers uniform."""
    for inner in module.modules():
        _fill_own(inner, generator, dtype)
        _fill_buffers(inner, generator, dtype)


def _fill_own(module: nn.Module, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> None:
    for name, p in module._parameters.items():
        if p is not None and p.is_meta:
            rows, *rest = p.shape
            if isinstance(module, nn.Embedding):  # row i is the stretch from i on of one line: no memory to speak of
                line = torch.randn(rows + sum(rest), generator=generator, dtype=dtype)
                drawn = line.as_strided((rows, *rest), (1, 1))
            else:
                drawn = torch.randn(p.shape, generator=generator, dtype=dtype) / max(p.shape[-1], 1) ** 0.5
            module._parameters[name] = nn.Parameter(drawn, requires_grad=False)


def _fill_buffers(module: nn.Module, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> None:
    for name, b in module._buffers.items():
        if b is not None and b.is_meta:
            drawn = torch.rand(b.shape, generator=generator, dtype=dtype)
            module._buffers[name] = drawn if b.is_floating_point() else drawn.to(b.dtype)


def _drop(module: nn.Module) -> None:
    module.to("meta")
