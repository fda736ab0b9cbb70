"""How two checkpoints differ: recipes, sizes, and layer by layer schemes, codes and weights."""

from collections import Counter
from collections.abc import Iterable, Iterator
from difflib import unified_diff
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from attrs import asdict, frozen
from torch import Tensor

from coldpress.checkpoint.decoded import FormatWeights
from coldpress.checkpoint.disk import checksum
from coldpress.checkpoint.published import format_of, open_folder, quantization_of
from coldpress.checkpoint.reader import read_json
from coldpress.errors import CheckpointError
from coldpress.numerics import relative_error
from coldpress.quantized import Quantized
from coldpress.schemes import Scheme, describe
from coldpress.source import Weights

_TIMED = ("manifest.json", "report.html", "report.json")  # of two runs that did the same, they differ in times
_RECIPE, _CONFIG = "recipe.yaml", "config.json"


class Tracker(Protocol):
    """Something that shows progress."""

    def track(self, iterable: Iterable[Any], *, description: str, total: int | None = None) -> Iterable[Any]:
        """The items, one by one."""
        ...


@frozen
class TensorDifference:
    """A tensor of the dense model in two checkpoints.

    Attributes:
        name: of the tensor.
        status: `equal` as stored; `same weights`, stored in another way; `other input scales`, of the same weights;
            `differs`; `other shape`; `only in A`, `only in B`.
        schemes: in words, of A and B; None where it is not quantized or not there.
        codes_changed: share of codes that differ; None where the two are not codes of one grid.
        error: Frobenius norm of B - A over that of A; None where they cannot be compared.
        largest: largest absolute difference of two weights; None as `error`.
        nbytes: that it takes in A and in B, scales included.
    """

    name: str
    status: str
    schemes: tuple[str | None, str | None] = (None, None)
    codes_changed: float | None = None
    error: float | None = None
    largest: float | None = None
    nbytes: tuple[int, int] = (0, 0)


@frozen
class Difference:
    """Two checkpoints side by side.

    Attributes:
        folders: A and B.
        tensors: of the dense model, all that are in either.
        recipe: lines of a unified diff of the recipes; empty where they are equal.
        config: keys of config.json whose values differ.
        files: name of each small file to `equal`, `differs`, `only in A` or `only in B`.
    """

    folders: tuple[Path, Path]
    tensors: tuple[TensorDifference, ...]
    recipe: tuple[str, ...]
    config: tuple[str, ...]
    files: dict[str, str]

    def is_equal(self) -> bool:
        """Whether both hold the same weights, and the same scales of inputs where both are static."""
        same = all(tensor.status in ("equal", "same weights") for tensor in self.tensors)
        return same and set(self.config) <= {"quantization_config", "transformers_version"}

    def nbytes(self) -> tuple[int, int]:
        """Bytes of the tensors of both."""
        return sum(tensor.nbytes[0] for tensor in self.tensors), sum(tensor.nbytes[1] for tensor in self.tensors)

    def counts(self) -> dict[str, int]:
        """How many tensors have each status."""
        return dict(Counter(tensor.status for tensor in self.tensors))

    def to_dict(self) -> dict[str, Any]:
        """What `diff --json` prints."""
        a, b = self.nbytes()
        return {
            "a": str(self.folders[0]),
            "b": str(self.folders[1]),
            "same_weights": self.is_equal(),
            "bytes": {"a": a, "b": b},
            "counts": self.counts(),
            "recipe": list(self.recipe),
            "config": list(self.config),
            "files": self.files,
            "tensors": [asdict(tensor) for tensor in self.tensors],
        }


def difference_of(a: Path, b: Path, *, progress: Tracker | None = None) -> Difference:
    """Compare two folders; one tensor of each is in memory at a time.

    Args:
        a: a checkpoint.
        b: another one, of the same model or one that has layers of the same names.
        progress: shows how far it is.

    Raises:
        CheckpointError: one of them is no checkpoint, or is damaged.
    """
    first, second = _opened(a), _opened(b)
    names = list(dict.fromkeys([*first.weights.names(), *second.weights.names()]))
    tracked = names if progress is None else progress.track(names, description="comparing", total=len(names))
    return Difference(
        folders=(a, b),
        tensors=tuple(_compared(name, first, second) for name in tracked),
        recipe=tuple(_recipes(a, b)),
        config=tuple(_keys(a, b)),
        files=_files(a, b, {path.name for path in (*first.stored.files, *second.stored.files)}),
    )


@frozen(eq=False)
class _Opened:
    """A folder.

    Attributes:
        stored: tensors as they lie in its files.
        weights: tensors of the dense model, each decoded when it is read.
        dense: their names.
    """

    stored: Weights
    weights: Weights
    dense: frozenset[str]


def _opened(folder: Path) -> _Opened:
    if not folder.is_dir():
        raise CheckpointError(f"{str(folder)!r} is no folder with a checkpoint")
    quantization = quantization_of(folder)
    form = format_of(quantization)
    stored = open_folder(folder, form)
    weights = stored if form is None else FormatWeights(stored, form, quantization)
    return _Opened(stored, weights, frozenset(weights.names()))


def _compared(name: str, first: _Opened, second: _Opened) -> TensorDifference:
    schemes, sizes = (_in_words(first, name), _in_words(second, name)), (_nbytes(first, name), _nbytes(second, name))
    whole = sizes[0] or 0, sizes[1] or 0
    if None in sizes:
        return TensorDifference(name, "only in B" if sizes[0] is None else "only in A", schemes, nbytes=whole)
    if tuple(first.weights.shape(name)) != tuple(second.weights.shape(name)):
        return TensorDifference(name, "other shape", schemes, nbytes=whole)
    changed, inputs_alike = _codes(name, first.weights, second.weights)
    old, new = first.weights.read(name), second.weights.read(name)
    same = bool(torch.equal(old.float(), new.float()))
    error, largest = (0.0, 0.0) if same else _distance(old, new)
    stored_alike = same and schemes[0] == schemes[1] and sizes[0] == sizes[1] and old.dtype == new.dtype and not changed
    status = "equal" if stored_alike else "same weights" if same else "differs"
    status = "other input scales" if same and not inputs_alike else status
    return TensorDifference(name, status, schemes, changed, error, largest, whole)


def _distance(old: Tensor, new: Tensor) -> tuple[float, float]:
    change = new.float() - old.float()
    return relative_error(old.float(), new.float()), float(change.abs().max())


def _in_words(checkpoint: "_Opened", name: str) -> str | None:
    """How a tensor is quantized; None where it is not, or not there."""
    scheme = checkpoint.weights.scheme(name) if name in checkpoint.dense else None
    return None if scheme is None else describe(scheme) + (f" ({scheme.format})" if scheme.format else "")


def _codes(name: str, first: Weights, second: Weights) -> tuple[float | None, bool]:
    """The share of codes that differ, where both are codes of one number format; whether inputs have one grid."""
    schemes = first.scheme(name), second.scheme(name)
    if schemes[0] is None or schemes[1] is None:
        return None, True
    old, new = first.quantized(name), second.quantized(name)
    a, b = old.codes, new.codes
    alike = _grid(schemes[0]) == _grid(schemes[1])
    if a is None or b is None or not alike or a.shape != b.shape:
        return None, _inputs_alike(old, new)
    return float((a.float() != b.float()).float().mean()), _inputs_alike(old, new)


def _inputs_alike(old: Quantized, new: Quantized) -> bool:
    """Whether scales and zero points of inputs are equal, where both are static."""
    pairs = (
        (old.input_scale, new.input_scale),
        (old.input_zero_point, new.input_zero_point),
        (old.input_global_scale, new.input_global_scale),
    )
    return all(a is None or b is None or torch.equal(a.float(), b.float()) for a, b in pairs)


def _grid(scheme: Scheme) -> tuple[object, ...]:
    args = scheme.weights
    return () if args is None else (args.type, args.num_bits, args.symmetric)


def _nbytes(checkpoint: "_Opened", name: str) -> int | None:
    """Bytes that the files hold of a tensor; None where it is not there."""
    if name not in checkpoint.dense:
        return None
    stored = checkpoint.stored
    return sum(stored.dtype(part).itemsize * prod(stored.shape(part)) for part in checkpoint.weights.made_of(name))


def _recipes(a: Path, b: Path) -> Iterator[str]:
    old, new = (
        path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        for path in (a / _RECIPE, b / _RECIPE)
    )
    yield from unified_diff(old, new, fromfile=str(a / _RECIPE), tofile=str(b / _RECIPE), lineterm="", n=1)


def _keys(a: Path, b: Path) -> list[str]:
    one, other = (read_json(path) if path.is_file() else {} for path in (a / _CONFIG, b / _CONFIG))
    return sorted(key for key in {*one, *other} if one.get(key) != other.get(key))


def _files(a: Path, b: Path, weights: set[str]) -> dict[str, str]:
    """Small files by name; those that speak of times and of the other small files are left out."""
    names = [{path.name for path in folder.iterdir() if path.is_file()} - weights - set(_TIMED) for folder in (a, b)]
    found = {}
    for name in sorted(names[0] | names[1]):
        if name not in names[0] or name not in names[1]:
            found[name] = "only in A" if name in names[0] else "only in B"
        else:
            found[name] = "equal" if checksum(a / name) == checksum(b / name) else "differs"
    return found
