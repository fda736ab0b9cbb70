"""What a checkpoint holds, told from the headers of its files, its config and its report."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from coldpress.checkpoint.config import quantization_in
from coldpress.checkpoint.published import format_of, open_folder
from coldpress.checkpoint.reader import read_json
from coldpress.format import Format
from coldpress.report.codes import Classifier, StoredTensor, is_embedding
from coldpress.report.report import read_report


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
        zeros: share of the weights of compressed layers that are zero, by the report; None where it says nothing.
    """

    folder: Path
    architecture: str
    dtype: str
    method: str | None
    parts: tuple[Part, ...]
    other_nbytes: int
    left_alone: tuple[tuple[str, str], ...]
    odd: tuple[tuple[str, str], ...]
    zeros: float | None = None

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
            "zeros": None if self.zeros is None else round(self.zeros, 4),
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
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    quantization = quantization_in(config)
    form, report = format_of(quantization), read_report(folder)
    lines = None if report is None else report.get("layers", [])
    weights = open_folder(folder, form)
    tensors = Classifier(quantization, form, {line["name"]: line for line in lines or ()}).tensors(weights)
    plain = Counter[str]()
    for tensor in tensors:
        if tensor.scheme is None:
            plain[tensor.dtype] += tensor.nbytes
    usual, files = plain.most_common(1)[0][0] if plain else "", set(weights.files)
    return Contents(
        folder=folder,
        architecture=", ".join(config.get("architectures") or []),
        dtype=usual,
        method=quantization.get("quant_method"),
        parts=_parts(tensors, {} if form is None else _attached_words(tensors, form, quantization)),
        other_nbytes=sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and path not in files),
        left_alone=tuple(_left_alone(lines, tensors, quantization)),
        odd=tuple((t.name, t.dtype) for t in tensors if t.scheme is None and t.dtype != usual),
        zeros=share_of_zeros(lines or ()),
    )


def share_of_zeros(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Of the weights of layers that a run changed, by the lines of its report; None where none were counted."""
    counted = [one for one in lines if one.get("sparsity") is not None and one.get("status") != "untouched"]
    sizes = [prod(one.get("shape") or (0,)) for one in counted]
    zeros = sum(size * float(one["sparsity"]) for size, one in zip(sizes, counted, strict=True))
    return zeros / sum(sizes) if sum(sizes) else None


@define
class _Sum:
    """What a part adds up to, while it is counted."""

    modules: set[str] = field(factory=set)
    weights: int = 0
    nbytes: int = 0
    companion_nbytes: int = 0


def _attached_words(
    tensors: Sequence[StoredTensor], form: Format, quantization: Mapping[str, Any]
) -> dict[tuple[str, str], str]:
    """Module and suffix of every tensor of an attachment to what it is, in words."""
    lookup, suffixes = form.attachments(quantization), dict[str, set[str]]()
    for tensor in tensors:
        suffixes.setdefault(tensor.module, set()).add(tensor.suffix)
    found = ((module, one) for module, own in suffixes.items() for one in lookup(module, (), own))
    return {(module, name): one.describe(name) for module, one in found for name in one.buffers()}


def _parts(tensors: Sequence[StoredTensor], attached: Mapping[tuple[str, str], str]) -> tuple[Part, ...]:
    """The tensors by kind: schemes first, then what takes most room.

    Args:
        tensors: of the checkpoint.
        attached: those of attachments, in words.
    """
    sums: dict[tuple[bool, str], _Sum] = {}
    for tensor in tensors:
        coded = tensor.scheme is not None
        words = tensor.scheme or attached.get((tensor.module, tensor.suffix)) or _plain_words(tensor)
        total = sums.setdefault((coded, words), _Sum())
        total.modules.add(tensor.module)
        total.weights += tensor.weights
        total.nbytes += tensor.nbytes
        if coded and not tensor.weights:
            total.companion_nbytes += tensor.nbytes
    parts = [
        Part(what, coded, len(s.modules), s.weights, s.nbytes, s.companion_nbytes) for (coded, what), s in sums.items()
    ]
    return tuple(sorted(parts, key=lambda part: (not part.quantized, -part.nbytes)))


def _plain_words(tensor: StoredTensor) -> str:
    if len(tensor.shape) < 2:
        return f"{'norms, biases' if 'float' in tensor.dtype else 'other tensors'}: {tensor.dtype}"
    return f"{'embeddings' if is_embedding(tensor.module) else 'other matrices'}: {tensor.dtype}"


def _left_alone(
    report: Sequence[Mapping[str, Any]] | None, tensors: Iterable[StoredTensor], config: Mapping[str, Any]
) -> Iterable[tuple[str, str]]:
    """Name and reason of layers that were not compressed: from the report, or else from the config."""
    if report is not None:
        lines = [line for line in report if line.get("status") in ("untouched", "fallback")]
        return [(line["name"], line.get("reason") or "no reason given") for line in lines]
    if not config:
        return []
    ignored = {name for value in config.values() if isinstance(value, list) for name in value if isinstance(name, str)}
    plain = [t.module for t in tensors if t.suffix == "weight" and t.scheme is None and len(t.shape) == 2]
    return [(name, "ignored by config.json" if name in ignored else "no target matches it") for name in plain]
