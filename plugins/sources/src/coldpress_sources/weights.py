"""Tensors of a folder of which some are codes with scales beside them."""

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from attrs import field, frozen
from torch import Tensor

from coldpress.plugin import CheckpointError, CheckpointReader, Cut, Quantized, Scheme, Weights

log = logging.getLogger(__name__)

Read = Callable[[str], Tensor]


@frozen(eq=False)
class Coded:
    """A weight that is stored as codes and scales.

    Attributes:
        stored: names of what it is made of, codes first.
        scheme: how it is quantized.
        shape: of the dense weight.
        restore: makes codes and scales of what is stored; the cut is for experts in one tensor.
        dtype: that holds the dense weight exactly, or as well as any.
        turned: the dense tensor is [E, I, O] where codes are [E, O, I].
    """

    stored: tuple[str, ...]
    scheme: Scheme
    shape: tuple[int, ...]
    restore: Callable[[Read, Cut | None], Quantized]
    dtype: torch.dtype = torch.float32
    turned: bool = False


class CodedWeights(Weights):
    """The tensors of the dense model.

    Args:
        reader: of the folder.
        coded: name of each weight that is stored as codes.
        beside: names of tensors that are part of no weight of the dense model, such as scales of keys and values.
    """

    def __init__(self, reader: CheckpointReader, coded: Mapping[str, Coded], beside: Sequence[str] = ()) -> None:
        self.files = reader.files
        self._reader, self._coded = reader, coded
        hidden = {name for one in coded.values() for name in one.stored} | set(beside)
        self._names = sorted({*coded, *(name for name in reader.names() if name not in hidden)})
        self._last: tuple[str, Tensor] | None = None
        if beside:
            log.warning(
                "%d tensors of %s are no part of the dense model, the first is %s: they do not come along",
                *(len(beside), reader.folder, beside[0]),
            )

    def names(self) -> list[str]:
        """The tensors of the dense model."""
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the dense tensor."""
        return self._coded[name].shape if name in self._coded else self._reader.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Of the dense tensor."""
        return self._coded[name].dtype if name in self._coded else self._reader.dtype(name)

    def read(self, name: str) -> Tensor:
        """The dense tensor."""
        if name not in self._coded:
            return self._reader.read(name)
        one = self._coded[name]
        if len(one.shape) == 2:
            return self.quantized(name).weight(one.dtype)
        experts = [self.quantized(name, _expert(number)).weight(one.dtype) for number in range(one.shape[0])]
        return torch.stack([expert.t() if one.turned else expert for expert in experts])

    def get(self, name: str) -> Tensor:
        """The same; the last one is kept, because experts are taken out of one tensor one after the other."""
        if name not in self._coded:
            return self._reader.get(name)
        if self._last is None or self._last[0] != name:
            self._last = None
            self._last = name, self.read(name)
        return self._last[1]

    def made_of(self, name: str) -> Sequence[str]:
        """Codes and scales."""
        return self._coded[name].stored if name in self._coded else (name,)

    def scheme(self, name: str) -> Scheme | None:
        """How a weight is quantized."""
        return self._coded[name].scheme if name in self._coded else None

    def quantized(self, name: str, cut: Cut | None = None) -> Quantized:
        """Codes and scales of a weight."""
        one = self._coded[name]
        try:
            return one.restore(self._reader.read if cut is None else self._reader.get, cut)
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"{name} cannot be decoded: {error}") from error


def _expert(number: int) -> Cut:
    return lambda stored: stored[number]


@frozen
class Known:
    """The tensors of a folder by module, to look for what lies beside a weight.

    Attributes:
        reader: of the folder.
        names: of all tensors.
    """

    reader: CheckpointReader
    names: frozenset[str] = field(init=False)

    @names.default
    def _all(self) -> frozenset[str]:
        return frozenset(self.reader.names())

    def beside(self, weight: str, *parts: str) -> str | None:
        """The first of these parts that the module of a weight has, by its full name."""
        owner = weight.rpartition(".")[0]
        return next((f"{owner}.{part}" for part in parts if f"{owner}.{part}" in self.names), None)

    def ending(self, *parts: str) -> list[str]:
        """All tensors whose last names are one of these."""
        return sorted(name for name in self.names if name.rpartition(".")[2] in parts)
