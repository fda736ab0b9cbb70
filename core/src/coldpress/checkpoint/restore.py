"""The weights of a stage that was written earlier: what its codes stand for, and everything else as it is."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from coldpress.checkpoint.named import NamedWriter
from coldpress.checkpoint.tie import WrittenNames
from coldpress.errors import CheckpointError
from coldpress.format import Format
from coldpress.quantized import Quantized
from coldpress.schemes import Scheme
from coldpress.stage import class_names, oriented

_INPUTS = ("input_scale", "input_zero_point", "input_global_scale")


def restored(
    writer: NamedWriter,
    form: Format,
    modules: Mapping[str, nn.Module],
    schemes: Mapping[str, Scheme],
    names: WrittenNames,
) -> Iterator[tuple[str, Tensor]]:
    """The parameters and saved buffers of modules whose stage is finished, one after the other.

    Args:
        writer: that has them in files.
        form: what wrote them.
        modules: by name.
        schemes: of the layers that are quantized.
        names: that tensors are written under.

    Raises:
        CheckpointError: a tensor is in no file.
    """
    there = writer.there()
    plain = not schemes or form.config(schemes, []) is None
    for name, module in modules.items():
        for part, tensor in own_tensors(module):
            full = f"{name}.{part}" if name else part
            if part == "weight" and name in schemes and not plain:
                yield full, _decoded(writer, form, module, name, schemes[name], tensor.dtype)
                continue
            place = next(names.of(name, part))
            if place not in there:
                raise CheckpointError(f"no finished stage has {full!r}; begin anew with restart=True (--restart)")
            yield full, writer.read(place)


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and saved buffers that belong to this module itself."""
    yield from module.named_parameters(recurse=False)
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield name, buffer


def write_inputs(quantized: Quantized) -> dict[str, Any]:
    """The scales of static inputs as JSON keeps them, exactly; empty when there are none."""
    found = {name: getattr(quantized, name) for name in _INPUTS}
    return {
        name: {"dtype": str(tensor.dtype), "values": tensor.double().tolist()}
        for name, tensor in found.items()
        if tensor is not None
    }


def read_inputs(scheme: Scheme, data: Mapping[str, Any]) -> Quantized:
    """What quantizes the inputs of a layer, and nothing about its weights."""
    return Quantized(scheme, **{name: _tensor(value) for name, value in data.items()})


def _tensor(data: Mapping[str, Any]) -> Tensor:
    dtype: torch.dtype = getattr(torch, data["dtype"].removeprefix("torch."))
    return torch.tensor(data["values"], dtype=torch.float64).to(dtype)


def _decoded(
    writer: NamedWriter, form: Format, module: nn.Module, name: str, scheme: Scheme, dtype: torch.dtype
) -> Tensor:
    found, classes = writer.of_layer(name), class_names(module)
    if "weight" in found:
        found["weight"] = oriented(found["weight"], classes)
    return oriented(form.restore(found, scheme).weight(dtype), classes).contiguous()
