"""What the tensors of a checkpoint stand for: which of them are the codes of quantized weights, and of how many."""

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Any

import torch
from attrs import field, frozen

from coldpress.format import Format, SchemeLookup, Stored
from coldpress.schemes import Scheme, describe
from coldpress.source import Weights

PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_NEVER_CODES = (*PLAIN, torch.int64, torch.bool, torch.complex64)  # positions, shapes and masks
_SMALL = 8  # what takes less than this part of a layer's largest codes is a companion of them


@frozen
class StoredTensor:
    """One tensor of a checkpoint.

    Attributes:
        name: of the tensor.
        module: that it belongs to.
        suffix: its name in the module.
        dtype: without `torch.`.
        shape: as stored.
        nbytes: as stored.
        scheme: in words, where it is part of a quantized weight: its codes, or a companion of them; else None.
        weights: numbers that it stands for; 0 for companions.
    """

    name: str
    module: str
    suffix: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    scheme: str | None
    weights: int


@frozen
class Classifier:
    """Says which tensors of a module are codes: the format knows, or the report of the run, or their dtypes tell.

    Attributes:
        config: `quantization_config`; empty for a plain model.
        form: the installed format of the config; None where there is none.
        lookup: what the format says of layers.
        report: layer name to its line in the report.
    """

    config: Mapping[str, Any]
    form: Format | None
    report: Mapping[str, Mapping[str, Any]]
    lookup: SchemeLookup | None = field(init=False)

    @lookup.default
    def _read(self) -> SchemeLookup | None:
        return None if self.form is None else self.form.read(self.config)

    def tensors(self, weights: Weights) -> list[StoredTensor]:
        """Every tensor, module by module."""
        modules: dict[str, list[str]] = {}
        every = set(weights.names())
        for name in weights.names():
            module = _owner(name, every)
            modules.setdefault(module, []).append(name.removeprefix(f"{module}."))
        return [tensor for module, suffixes in modules.items() for tensor in self._module(weights, module, suffixes)]

    def _module(self, weights: Weights, module: str, suffixes: Sequence[str]) -> list[StoredTensor]:
        stored = {suffix: _stored(weights, f"{module}.{suffix}" if module else suffix) for suffix in suffixes}
        scheme = self._scheme(module)
        counts = self._counts(module, stored, scheme)
        words = self._words(module, scheme, stored, counts)
        return [
            StoredTensor(
                name=f"{module}.{suffix}" if module else suffix,
                module=module,
                suffix=suffix,
                dtype=_dtype(one),
                shape=one.shape,
                nbytes=one.nbytes(),
                scheme=words if suffix in counts else None,
                weights=counts.get(suffix, prod(one.shape)),
            )
            for suffix, one in stored.items()
        ]

    def _scheme(self, module: str) -> Scheme | None:
        kinds = ("Embedding", "Linear") if is_embedding(module) else ("Linear", "Embedding")
        found = (self.lookup(module, (kind, "Module")) for kind in kinds if self.lookup is not None)
        return next((scheme for scheme in found if scheme is not None), None)

    def _counts(self, module: str, stored: Mapping[str, Stored], scheme: Scheme | None) -> Mapping[str, int]:
        """Suffix of every tensor of a quantized weight to the weights that it stands for; empty for a plain module."""
        if self.form is not None and scheme is not None:
            known = self.form.count_weights(stored, scheme)
            if known:
                return known
        codes = _codes(stored)
        line = self.report.get(module, {})
        if line.get("status") in ("quantized", "fallback") and line.get("scheme") and set(stored) - {"weight", "bias"}:
            codes = codes or [max(stored, key=lambda suffix: stored[suffix].nbytes())]
        if not codes:
            return {}
        counts = dict.fromkeys((suffix for suffix in stored if suffix != "bias"), 0)
        if "shape" in line and line.get("scheme"):
            return {**counts, codes[0]: prod(line["shape"])}
        return {**counts, **{suffix: _held(stored[suffix], self._bits()) for suffix in codes}}

    def _bits(self) -> int | None:
        """How wide codes are, where a config says it for all layers."""
        bits = self.config.get("bits") or next((n for n in (4, 8) if self.config.get(f"load_in_{n}bit")), None)
        return bits if isinstance(bits, int) and bits > 0 else None

    def _words(
        self, module: str, scheme: Scheme | None, stored: Mapping[str, Stored], counts: Mapping[str, int]
    ) -> str | None:
        """What a quantized weight is, in words: of its scheme, of the report, or else of the config and the codes."""
        if not counts:
            return None
        if scheme is not None:
            return describe(scheme) + (f" ({scheme.format})" if scheme.format else "")
        name = self.report.get(module, {}).get("scheme")
        if name:
            return str(name)
        method, bits = str(self.config.get("quant_method", "quantized")), self._bits()
        if bits is None:
            codes = max(counts, key=lambda suffix: counts[suffix])
            return f"{method}: {_dtype(stored[codes])} codes"
        group = f" group {self.config['group_size']}" if "group_size" in self.config else ""
        return f"{method} {bits} bits{group}"


def is_embedding(module: str) -> bool:
    """Whether a module is an embedding, by its name."""
    last = module.rpartition(".")[2]
    return "embed" in last or last in ("wte", "wpe")


def _owner(name: str, every: Collection[str]) -> str:
    """The module that a tensor belongs to: that of `a.weight`, where the tensor is `a.weight.absmax`."""
    parts = name.split(".")
    heads = (".".join(parts[:count]) for count in range(1, len(parts)))
    return next((head for head in heads if head in every), name).rpartition(".")[0]


def _stored(weights: Weights, name: str) -> Stored:
    return Stored(weights.dtype(name), tuple(weights.shape(name)), lambda: weights.read(name))


def _dtype(stored: Stored) -> str:
    return str(stored.dtype).removeprefix("torch.")


def _codes(stored: Mapping[str, Stored]) -> list[str]:
    """Suffixes of what must be codes, because plain weights have other dtypes; the largest first."""
    odd = sorted(
        (suffix for suffix, one in stored.items() if one.dtype not in _NEVER_CODES),
        key=lambda suffix: -stored[suffix].nbytes(),
    )
    return [suffix for suffix in odd if stored[suffix].nbytes() * _SMALL > stored[odd[0]].nbytes()]


def _held(stored: Stored, bits: int | None) -> int:
    """How many codes of so many bits a tensor holds; one in each element where nothing says how wide they are."""
    return prod(stored.shape) if bits is None else stored.nbytes() * 8 // bits
