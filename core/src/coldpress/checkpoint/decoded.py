"""A folder that a format wrote, as the tensors of the dense model: each layer is decoded when it is read."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from coldpress.errors import CheckpointError
from coldpress.format import Format, Stored
from coldpress.quantized import Quantized
from coldpress.schemes import Scheme
from coldpress.source import Cut, Weights

_WHOLE = ("weight", "bias")
_CLASSES = ("Linear", "Module")
_ATTENTION = ("Attention", "Module")


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
        self._shapes: dict[str, tuple[int, int]] = {}
        lookup, attached = form.read(config), form.attachments(config)
        for name in stored.names():
            self._layers.setdefault(name.rpartition(".")[0], []).append(name)
        for owner, names in self._layers.items():
            parts = {name.rpartition(".")[2]: name for name in names}
            if parts.keys() <= set(_WHOLE) or attached(owner, _ATTENTION, parts):
                continue
            scheme = lookup(owner, _CLASSES)
            if scheme is not None and scheme.weights is not None and self._is_quantized(parts, scheme):
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
        if owner not in self._shapes:
            parts = {full.rpartition(".")[2]: full for full in self._layers[owner]}
            found = self._format.shape(self._headers(parts), self._schemes[owner])
            if found is None:
                codes = self.quantized(name).codes
                assert codes is not None
                found = codes.shape[0], codes.shape[1]
            self._shapes[owner] = found
        return self._shapes[owner]

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

    def _headers(self, parts: Mapping[str, str]) -> dict[str, Stored]:
        found = {}
        for part, full in parts.items():
            read = partial(self._stored.read, full)
            found[part] = Stored(self._stored.dtype(full), tuple(self._stored.shape(full)), read)
        return found

    def _is_quantized(self, parts: Mapping[str, str], scheme: Scheme) -> bool:
        """Whether these are the tensors of a quantized layer, as far as the format tells."""
        if type(self._format).count_weights is Format.count_weights:
            return True
        return sum(self._format.count_weights(self._headers(parts), scheme).values()) > 0

    def _coded(self, name: str) -> str | None:
        """The layer whose weight this is, if that is decoded."""
        owner, _, part = name.rpartition(".")
        return owner if part == "weight" and owner in self._schemes else None


def _codes_first(name: str) -> tuple[bool, str]:
    part = name.rpartition(".")[2]
    return (part not in ("weight", "weight_packed", "qweight"), name)
