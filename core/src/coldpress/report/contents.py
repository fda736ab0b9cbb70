"""What a checkpoint holds, told from the headers of its files, its config and its report."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from attrs import define, field, frozen

from coldpress import registry
from coldpress.checkpoint import CheckpointReader, SchemeLookup
from coldpress.errors import UnknownPluginError
from coldpress.report.report import read_report
from coldpress.schemes import describe

_PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_PACKED = ("weight_packed", "qweight")
_CODES = (*_PACKED, "weight")  # where the codes of a quantized layer are
_SIGNS = (*_PACKED, "weight_scale", "weight_scale_inv")  # a layer with one of these is quantized
_CACHE = ("k_scale", "v_scale", "q_scale")
_COMPANIONS = ("scale", "scales", "_scale_inv", "zero_point", "qzeros", "g_idx", "weight_shape")


@frozen
class Part:
    """Tensors of one kind.

    Attributes:
        name: a scheme in words, or what the tensors are.
        quantized: whether it is a scheme.
        count: modules.
        weights: numbers that the tensors stand for; scales and zero points are not weights.
        nbytes: on disk, scales and zero points included.
        companion_nbytes: of these, what is not codes: scales, zero points, shapes.
    """

    name: str
    quantized: bool
    count: int
    weights: int
    nbytes: int
    companion_nbytes: int = 0

    def bits(self) -> float:
        """Bits per weight, everything included."""
        return bits_per_weight(self.nbytes, self.weights)

    def to_dict(self) -> dict[str, Any]:
        """The part as JSON has it."""
        return {
            "name": self.name,
            "quantized": self.quantized,
            "modules": self.count,
            "weights": self.weights,
            "bytes": self.nbytes,
            "scale_bytes": self.companion_nbytes,
            "bits_per_weight": round(self.bits(), 4),
        }


@frozen
class Contents:
    """A checkpoint at a glance.

    Attributes:
        folder: where it is.
        architecture: class of the model; empty when no config says.
        dtype: of most of what is not quantized; empty when all is.
        method: `quant_method` of the config; None for a plain model.
        parts: its tensors by kind, quantized kinds first.
        other_nbytes: files that are not safetensors.
        left_alone: name and reason of every layer that was not compressed, where something was.
        odd: name and dtype of tensors in another dtype than `dtype`.
    """

    folder: Path
    architecture: str
    dtype: str
    method: str | None
    parts: tuple[Part, ...]
    other_nbytes: int
    left_alone: tuple[tuple[str, str], ...]
    odd: tuple[tuple[str, str], ...]

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(part.nbytes for part in self.parts)

    def weights(self) -> int:
        """Numbers that all tensors stand for."""
        return sum(part.weights for part in self.parts)

    def bits(self) -> float:
        """Bits per weight of the whole model."""
        return bits_per_weight(self.nbytes(), self.weights())

    def quantized_bits(self) -> float | None:
        """Bits per weight of the quantized layers; None when there are none."""
        parts = [part for part in self.parts if part.quantized]
        return bits_per_weight(sum(p.nbytes for p in parts), sum(p.weights for p in parts)) if parts else None

    def to_dict(self) -> dict[str, Any]:
        """What `inspect --json` prints."""
        quantized = self.quantized_bits()
        return {
            "folder": str(self.folder),
            "architecture": self.architecture,
            "dtype": self.dtype,
            "quant_method": self.method,
            "weights": self.weights(),
            "bytes": self.nbytes(),
            "other_bytes": self.other_nbytes,
            "bits_per_weight": round(self.bits(), 4),
            "quantized_bits_per_weight": None if quantized is None else round(quantized, 4),
            "parts": [part.to_dict() for part in self.parts],
            "left_alone": [{"name": name, "reason": reason} for name, reason in self.left_alone],
            "odd_dtypes": [{"name": name, "dtype": dtype} for name, dtype in self.odd],
        }


def bits_per_weight(nbytes: int, weights: int) -> float:
    """8 times one over the other; 0 when there are no weights."""
    return 8 * nbytes / weights if weights else 0.0


def contents_of(folder: Path) -> Contents:
    """Look into a checkpoint; reads headers, JSON files and the shapes that packed layers keep, no weights.

    Raises:
        CheckpointError: it is not one, or a file of it is damaged.
    """
    reader = CheckpointReader(folder)
    config = reader.config() if (folder / "config.json").exists() else {}
    quantization = config.get("quantization_config") or {}
    tensors = _tensors(reader, quantization)
    plain = Counter[str]()
    for tensor in tensors:
        if not tensor.coded:
            plain[tensor.dtype] += tensor.nbytes
    usual = plain.most_common(1)[0][0] if plain else ""
    files = set(reader.files)
    return Contents(
        folder=folder,
        architecture=", ".join(config.get("architectures") or []),
        dtype=usual,
        method=quantization.get("quant_method"),
        parts=_parts(tensors, quantization),
        other_nbytes=sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and path not in files),
        left_alone=tuple(_left_alone(folder, tensors, quantization)),
        odd=tuple((t.name, t.dtype) for t in tensors if not t.coded and t.dtype != usual),
    )


@frozen
class _Tensor:
    """One tensor of a file.

    Attributes:
        name: of the tensor.
        module: that it belongs to.
        suffix: its name in the module.
        dtype: without `torch.`.
        shape: as stored.
        nbytes: as stored.
        coded: whether it is part of a quantized weight: its codes or a companion of them.
        weights: numbers that it stands for; 0 for companions.
    """

    name: str
    module: str
    suffix: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    coded: bool
    weights: int


def _tensors(reader: CheckpointReader, config: Mapping[str, Any]) -> list[_Tensor]:
    modules: dict[str, list[str]] = {}
    for name in reader.names():
        module, _, suffix = name.rpartition(".")
        modules.setdefault(module, []).append(suffix)
    lookup = _lookup(config)
    return [
        _tensor(reader, module, suffix, suffixes, _bits(module, lookup, config))
        for module, suffixes in modules.items()
        for suffix in suffixes
    ]


def _bits(module: str, lookup: SchemeLookup | None, config: Mapping[str, Any]) -> int:
    """How wide packed codes of a module are: GPTQ and AWQ say it for all; float4 where nothing says."""
    scheme = lookup(module, ("Linear", "Module")) if lookup else None
    return int(config.get("bits") or (scheme.weights.num_bits if scheme and scheme.weights else 4))


def _tensor(reader: CheckpointReader, module: str, suffix: str, suffixes: Sequence[str], bits: int) -> _Tensor:
    name = _join(module, suffix)
    dtype, shape, companion = reader.dtype(name), reader.shape(name), suffix.endswith(_COMPANIONS)
    coded = _is_quantized(reader, module, suffixes) and (suffix in _CODES or companion)
    weights = 0 if companion else prod(shape)
    if coded and "weight_shape" in suffixes and not companion:
        weights = int(reader.get(_join(module, "weight_shape")).prod())
    elif coded and suffix in _PACKED:
        weights = weights * dtype.itemsize * 8 // bits
    plain_dtype = str(dtype).removeprefix("torch.")
    return _Tensor(name, module, suffix, plain_dtype, shape, reader.nbytes(name), coded, weights)


def _join(module: str, suffix: str) -> str:
    return f"{module}.{suffix}" if module else suffix


def _is_quantized(reader: CheckpointReader, module: str, suffixes: Iterable[str]) -> bool:
    if any(sign in suffixes for sign in _SIGNS):
        return True
    return "weight" in suffixes and reader.dtype(_join(module, "weight")) not in _PLAIN


@define
class _Sum:
    """What a part adds up to, while it is counted."""

    modules: set[str] = field(factory=set)
    weights: int = 0
    nbytes: int = 0
    companion_nbytes: int = 0


def _parts(tensors: Sequence[_Tensor], config: Mapping[str, Any]) -> tuple[Part, ...]:
    """The tensors by kind: schemes first, then what takes most room."""
    sums: dict[tuple[bool, str], _Sum] = {}
    lookup = _lookup(config)
    for tensor in tensors:
        what = _scheme_words(tensor.module, lookup, config) if tensor.coded else _plain_words(tensor, config)
        total = sums.setdefault((tensor.coded, what), _Sum())
        total.modules.add(tensor.module)
        total.weights += tensor.weights
        total.nbytes += tensor.nbytes
        if tensor.suffix.endswith(_COMPANIONS):
            total.companion_nbytes += tensor.nbytes
    parts = [
        Part(what, coded, len(s.modules), s.weights, s.nbytes, s.companion_nbytes) for (coded, what), s in sums.items()
    ]
    return tuple(sorted(parts, key=lambda part: (not part.quantized, -part.nbytes)))


def _plain_words(tensor: _Tensor, config: Mapping[str, Any]) -> str:
    cache = config.get("kv_cache_scheme")
    if cache and tensor.suffix in _CACHE:
        what = "queries of attention" if tensor.suffix == "q_scale" else "KV cache"
        return f"{what}: {cache.get('type', 'int')}{cache.get('num_bits', 8)} {cache.get('strategy') or 'tensor'}"
    if len(tensor.shape) < 2:
        return f"norms, biases: {tensor.dtype}"
    return f"{'embeddings' if _is_embedding(tensor.module) else 'other matrices'}: {tensor.dtype}"


def _is_embedding(module: str) -> bool:
    last = module.rpartition(".")[2]
    return "embed" in last or last in ("wte", "wpe")


def _lookup(config: Mapping[str, Any]) -> SchemeLookup | None:
    """What the installed format of this config says of layers; None when none is installed."""
    method = config.get("quant_method")
    try:
        form = registry.find("formats", method)() if isinstance(method, str) else None
    except UnknownPluginError:
        return None
    lookup: SchemeLookup | None = form.read(config) if form else None
    return lookup


def _scheme_words(module: str, lookup: SchemeLookup | None, config: Mapping[str, Any]) -> str:
    kinds = ("Embedding", "Linear") if _is_embedding(module) else ("Linear", "Embedding")
    for kind in kinds if lookup else ():
        scheme = lookup(module, (kind, "Module")) if lookup else None
        if scheme is not None:
            return describe(scheme) + (f" ({scheme.format})" if scheme.format else "")
    words = [str(config.get("quant_method", "quantized"))]
    words += [f"{config['bits']} bits"] if "bits" in config else []
    words += [f"group {config['group_size']}"] if "group_size" in config else []
    return " ".join(words)


def _left_alone(folder: Path, tensors: Iterable[_Tensor], config: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Name and reason of layers that were not compressed: from the report, or else from the config."""
    report = read_report(folder)
    if report is not None:
        lines = [line for line in report.get("layers", []) if line.get("status") in ("untouched", "fallback")]
        return [(line["name"], line.get("reason") or "no reason given") for line in lines]
    if not config:
        return []
    ignored = config.get("ignore") or config.get("modules_to_not_convert") or []
    plain = [t.module for t in tensors if t.suffix == "weight" and not t.coded and len(t.shape) == 2]
    return [(name, "ignored by config.json" if name in ignored else "no target matches it") for name in plain]
