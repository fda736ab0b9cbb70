"""A writer whose tensors are called as in memory, whatever they are called, and however they are joined, on disk."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from coldpress.checkpoint.names import CheckpointNames
from coldpress.checkpoint.writer import CheckpointWriter
from coldpress.experts.layout import Slot
from coldpress.experts.linear import LinearExperts
from coldpress.schemes import Scheme
from coldpress.stage import find_layers


@frozen(eq=False)
class NamedWriter:
    """What stages are written to and read back from.

    Attributes:
        writer: of the checkpoint.
        names: what tensors are called there.
        joined: name of every expert's tensor that is part of a joint one there, to where it is.
    """

    writer: CheckpointWriter
    names: CheckpointNames
    joined: Mapping[str, "Part"]

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors."""
        self.writer.add({self.names.on_disk(name): self.names.saved(name, x) for name, x in tensors.items()})

    def there(self) -> set[str]:
        """Every tensor that is written."""
        known = set(self.writer.names())
        found = {self.names.in_memory(name) for name in known}
        return found | {name for name, part in self.joined.items() if self.names.on_disk(part.tensor) in known}

    def of_layer(self, name: str) -> dict[str, Tensor]:
        """What is written of a layer, by suffix."""
        prefix = f"{self.names.layer(name)}."
        suffixes = [known.removeprefix(prefix) for known in self.writer.names() if known.startswith(prefix)]
        return {suffix: self.writer.read(prefix + suffix) for suffix in suffixes if "." not in suffix}

    def read(self, name: str) -> Tensor:
        """A tensor that is written."""
        part = self.joined.get(name)
        if part is None:
            return self.writer.read(self.names.on_disk(name))
        return part.of(self.names.loaded(part.tensor, self.writer.read(self.names.on_disk(part.tensor))))


@frozen
class Part:
    """Where in a joint tensor the tensor of an expert is.

    Attributes:
        tensor: name of the joint tensor.
        slot: which of its rows.
        number: of the expert.
        is_bias: it is a bias, not a weight.
    """

    tensor: str
    slot: Slot
    number: int
    is_bias: bool

    def of(self, joint: Tensor) -> Tensor:
        """The expert's tensor, in memory of its own."""
        parts: Any = {self.slot.parameter: joint, self.slot.bias: joint}
        found = self.slot.biases(parts) if self.is_bias else self.slot.weights(parts)
        assert found is not None
        return found[self.number].clone(memory_format=torch.contiguous_format)


def joined_parts(model: nn.Module, names: CheckpointNames) -> dict[str, Part]:
    """Where the experts' tensors are in a plain checkpoint, of those modules whose experts are in one tensor there."""
    parts: dict[str, Part] = {}
    for name in names.fused:
        module = model.get_submodule(name)
        assert isinstance(module, LinearExperts)
        parts |= expert_parts(name, module)
    return parts


def expert_parts(name: str, module: LinearExperts) -> dict[str, Part]:
    """Name of every expert's tensor to where it is in the tensors that the module was made of.

    Args:
        name: of the module.
        module: whose experts are linear layers.
    """
    parts = {}
    for role, slot in module.layout.slots.items():
        for number in range(module.count):
            parts[f"{name}.{number}.{role}.weight"] = Part(f"{name}.{slot.parameter}", slot, number, False)
            if slot.bias is not None:
                parts[f"{name}.{number}.{role}.bias"] = Part(f"{name}.{slot.bias}", slot, number, True)
    return parts


def schemes_on_disk(schemes: Mapping[str, Scheme], names: CheckpointNames) -> dict[str, Scheme]:
    """The schemes by the names that layers have on disk, with targets that mean them there."""
    found = {}
    for name, scheme in schemes.items():
        disk = names.layer(name)
        targets = tuple(dict.fromkeys(names.layer(target) for target in scheme.targets))
        patterns = [target[3:] for target in targets if target.startswith("re:")]
        if any(bool(re.match(pattern, name)) != bool(re.match(pattern, disk)) for pattern in patterns):
            targets = (disk, *targets)
        found[disk] = evolve(scheme, targets=targets)
    return found


def unquantized_on_disk(model: nn.Module, schemes: Mapping[str, Scheme], names: CheckpointNames) -> list[str]:
    """What a reader must not take for quantized: other layers, and modules that hold a matrix and may be layers there.

    A layer that has another name on disk is listed under both: engines look for one, transformers for the other.
    """
    modules = list(model.named_modules())
    layers = {layer.name for layer in find_layers(modules)}
    listed = []
    for name, module in modules:
        weight = getattr(module, "weight", None)
        if name in layers or (isinstance(weight, Tensor) and weight.ndim == 2):
            listed.append(name)
    plain = [name for name in listed if name and name not in schemes]
    return list(dict.fromkeys(other for name in plain for other in (names.layer(name), name)))


def joint_tensors(name: str, module: nn.Module, names: CheckpointNames) -> Iterator[tuple[str, Tensor]]:
    """The tensors of experts that are in one tensor in a plain checkpoint; nothing for any other module."""
    if name in names.fused and isinstance(module, LinearExperts):
        for part, tensor in module.fused_tensors().items():
            yield f"{name}.{part}", tensor
