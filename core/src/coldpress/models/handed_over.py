"""A model that a user hands over in memory: taken out of its wrappers where that is exact, else refused with a way out.

torch.compile, DataParallel, checkpoint_wrapper, ...     the model inside is compressed, in place
PEFT, parametrizations, torch.nn.utils.prune             refused: a weight that is computed from others is no weight
quantized by another library, sharded, TorchScript       refused
"""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from coldpress.errors import ArgumentError, ModelError
from coldpress.models.memory import shares_memory
from coldpress.stage import find_layers

log = logging.getLogger(__name__)

_INNER = ("_orig_mod", "_checkpoint_wrapped_module")  # of torch.compile, and of wrappers that recompute activations
_PARALLEL = (
    "DataParallel",
    "DistributedDataParallel",
    "AveragedModel",
)  # what holds a model as `module` and changes nothing in it
_OF_TORCH = ("torch.ao.nn.", "torch.nn.quantized")  # layers of its own quantization, whose weight is a method
_SHARDED = ("FullyShardedDataParallel", "FSDPModule", "DTensor")


def handed_over(model: Any) -> nn.Module:
    """The model itself, whose parameters may be changed in place.

    Raises:
        ArgumentError: it is no torch module.
        ModelError: its weights are not plain tensors that belong to its layers; says what to do.
    """
    model = _unwrapped(model)
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a path, a name or a torch module, got {type(model).__name__}")
    reason = next(_obstacles(model), None)
    if reason is not None:
        raise ModelError(reason)
    _own(model)
    return model


def has_adapters(model: nn.Module) -> bool:
    """Whether PEFT has put adapters into a model, or around it."""
    bases = (getattr(module, "base_layer", None) for module in model.modules())
    return hasattr(model, "peft_config") or any(isinstance(base, nn.Module) for base in bases)


def _unwrapped(model: Any) -> Any:
    """The model inside of wrappers, and inside of it modules in place of their wrappers, so that names are its own."""
    found = _innermost(model)
    for module in list(found.modules()) if isinstance(found, nn.Module) else []:
        for name, child in list(module.named_children()):
            if _innermost(child) is not child:
                setattr(module, name, _innermost(child))
    return found


def _innermost(model: Any) -> Any:
    inner = next((getattr(model, name) for name in _INNER if hasattr(model, name)), None)
    if inner is None and type(model).__name__ in _PARALLEL:
        inner = model.module
    if not isinstance(inner, nn.Module):
        return model
    log.warning("%s is taken off: the %s inside of it is compressed", type(model).__name__, type(inner).__name__)
    return _innermost(inner)


def _obstacles(model: nn.Module) -> Iterator[str]:
    """Why a model cannot be compressed as it is, the most telling reason first."""
    kinds = {name for module in model.modules() for name in _class_names(module)}
    if isinstance(model, torch.jit.ScriptModule):
        yield f"{type(model).__name__} is TorchScript, whose layers cannot be seen: pass the model that it was made of"
    if has_adapters(model):
        yield (
            "the model has adapters (PEFT), which are not part of its weights: merge them first, "
            "model = model.merge_and_unload(), or compress the base model"
        )
    if kinds.intersection(_SHARDED) or any(type(p.data).__name__ in _SHARDED for p in model.parameters()):
        yield "the model's weights are sharded over processes (FSDP): gather them first, or pass the model's folder"
    lazy = next((name for name, one in (*model.named_parameters(), *model.named_buffers()) if is_lazy(one)), None)
    if lazy is not None:
        yield f"{lazy} has no shape yet (a lazy module): call the model once, or take the module out"
        return
    sparse = next((name for name, one in model.named_parameters() if one.layout != torch.strided), None)
    if sparse is not None:
        yield f"{sparse} is stored sparsely, which no checkpoint has a place for: make it dense with to_dense()"
    quantized = next(_quantized(model), None)
    if quantized is not None:
        yield (
            f"the model is quantized already ({quantized}): load it without quantization, or pass its folder, which is "
            "decoded where an installed format reads it"
        )
    yield from _computed(model)


def _quantized(model: nn.Module) -> Iterator[str]:
    """What shows that weights are no longer those of a dense model."""
    for name, module in model.named_modules():
        ours = type(module).__module__.startswith(_OF_TORCH)
        if ours or hasattr(module, "quantization_scheme") or "qweight" in {**module._parameters, **module._buffers}:
            yield f"{name} is a quantized {type(module).__name__}"
        for part, parameter in module._parameters.items():
            if parameter is not None and parameter.ndim > 1 and not _is_plain(parameter):
                yield f"{name}.{part} has the dtype {str(parameter.dtype).removeprefix('torch.')}"
            elif parameter is not None and type(parameter.data) is not Tensor:
                yield f"{name}.{part} is a {type(parameter.data).__name__}"
    if getattr(model, "is_quantized", False):
        method = getattr(getattr(model, "config", None), "quantization_config", None)
        method = method.get("quant_method") if isinstance(method, dict) else getattr(method, "quant_method", method)
        yield f"transformers loaded it so, {getattr(method, 'value', method)}"


def _is_plain(parameter: Tensor) -> bool:
    return parameter.dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _computed(model: nn.Module) -> Iterator[str]:
    """Layers whose weight is no parameter of theirs."""
    for layer in find_layers(model.named_modules()):
        module = layer.module
        if "weight" in module._parameters or "weight" in module._buffers:
            continue
        way = "give the layer a weight of its own"
        if hasattr(module, "parametrizations"):
            way = 'call torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")'
        elif "weight_orig" in module._parameters and "weight_u" in module._buffers:
            way = "call torch.nn.utils.remove_spectral_norm(layer)"
        elif "weight_orig" in module._parameters:
            way = 'call torch.nn.utils.prune.remove(layer, "weight")'
        elif "weight_g" in module._parameters:
            way = "call torch.nn.utils.remove_weight_norm(layer)"
        yield f"{layer.name}.weight is computed from other tensors when it is called: {way} first"


def _own(model: nn.Module) -> None:
    """Copy what nothing may change in place: parameters and buffers of `torch.inference_mode`, and shared memory."""
    copies: dict[int, Tensor] = {}
    shared = shares_memory(model)
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for part, tensor in list(tensors.items()):
                if tensor is None or not (tensor.is_inference() or id(tensor) in shared):
                    continue
                if id(tensor) not in copies:
                    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    copies[id(tensor)] = (
                        nn.Parameter(copy, requires_grad=tensor.requires_grad) if is_parameter else copy
                    )
                tensors[part] = copies[id(tensor)]  # type: ignore[assignment]


def _class_names(module: nn.Module) -> list[str]:
    return [kind.__name__ for kind in type(module).__mro__]
