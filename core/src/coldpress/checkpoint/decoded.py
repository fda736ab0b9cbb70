"""A folder that a format wrote, as the tensors of the dense model: each layer is decoded when it is read."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from coldpress.errors import CheckpointError
from coldpress.format import Format
from coldpress.quantized import Quantized
from coldpress.schemes import Scheme
from coldpress.source import Cut, Weights

_WHOLE = ("weight", "bias")
_CLASSES = ("Linear", "Module")


class FormatWeights(Weights):
    """The tensors that a format wrote, decoded in float32.

    A layer is quantized where the configuration gives it a scheme and there is more of it than a weight and a bias:
    a configuration speaks of classes, and of which class a module is, names do not tell.

    Args:
        stored: the tensors as they lie in the files.
        form: that wrote them.
        config: what it wrote into `config.json`.
    """

    def __init__(self, stored: Weights, form: Format, config: Mapping[str, Any]) -> None:
        self.files = stored.files
        self._stored, self._format = stored, form
        self._layers: dict[str, list[str]] = {}
        self._schemes: dict[str, Scheme] = {}
        lookup = form.read(config)
        for name in stored.names():
            self._layers.setdefault(name.rpartition(".")[0], []).append(name)
        for owner, names in self._layers.items():
            if any(_is_code(name) for name in names):
                scheme = lookup(owner, _CLASSES)
                if scheme is not None and scheme.weights is not None:
                    self._schemes[owner] = scheme

    def names(self) -> list[str]:
        """The tensors of the dense model."""
        found = [name for owner, names in self._layers.items() if owner not in self._schemes for name in names]
        found += [f"{owner}.weight" for owner in self._schemes]
        found += [f"{owner}.bias" for owner in self._schemes if f"{owner}.bias" in self._layers[owner]]
        return sorted(found)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the dense tensor."""
        owner = self._coded(name)
        if owner is None:
            return self._stored.shape(name)
        parts = {full.rpartition(".")[2]: full for full in self._layers[owner]}
        if "weight" in parts:
            return self._stored.shape(parts["weight"])
        if "weight_shape" in parts:
            rows, columns = self._stored.read(parts["weight_shape"]).tolist()
            return (rows, columns)
        args = self._schemes[owner].weights
        packed = next((parts[part] for part in parts if "packed" in part), None)
        if args is None or packed is None:
            raise CheckpointError(f"{owner} has {', '.join(parts)} and no weight that this version can read")
        shape = self._stored.shape(packed)
        return (shape[0], shape[1] * self._stored.dtype(packed).itemsize * 8 // args.num_bits)

    def dtype(self, name: str) -> torch.dtype:
        """float32 for what is decoded."""
        return self._stored.dtype(name) if self._coded(name) is None else torch.float32

    def read(self, name: str) -> Tensor:
        """A tensor of the dense model."""
        return self._stored.read(name) if self._coded(name) is None else self.quantized(name).weight(torch.float32)

    def get(self, name: str) -> Tensor:
        """The same, backed by the file where it is not decoded."""
        return self._stored.get(name) if self._coded(name) is None else self.read(name)

    def made_of(self, name: str) -> Sequence[str]:
        """Codes, scales, zero points, shapes."""
        owner = self._coded(name)
        if owner is None:
            return (name,)
        return sorted((full for full in self._layers[owner] if not full.endswith(".bias")), key=_codes_first)

    def scheme(self, name: str) -> Scheme | None:
        """What the configuration says."""
        owner = self._coded(name)
        return None if owner is None else self._schemes[owner]

    def quantized(self, name: str, cut: Cut | None = None) -> Quantized:
        """The layer as the format restores it."""
        owner = self._coded(name)
        assert owner is not None, name
        found = {full.rpartition(".")[2]: self._stored.read(full) for full in self._layers[owner]}
        try:
            return self._format.restore(found, self._schemes[owner])
        except CheckpointError as error:
            raise CheckpointError(f"{owner}: {error}") from error

    def _coded(self, name: str) -> str | None:
        """The layer whose weight this is, if that is decoded."""
        owner, _, part = name.rpartition(".")
        return owner if part == "weight" and owner in self._schemes else None


def _is_code(name: str) -> bool:
    return name.rpartition(".")[2] not in _WHOLE


def _codes_first(name: str) -> tuple[bool, str]:
    part = name.rpartition(".")[2]
    return (part != "weight" and "packed" not in part, name)
