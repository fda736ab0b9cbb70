"""Opening: a folder of safetensors files, read as whatever its configuration says that it holds."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from coldpress.attachment import Attached
from coldpress.checkpoint import CheckpointReader
from coldpress.checkpoint.config import quantization_in, tables
from coldpress.checkpoint.decoded import FormatWeights
from coldpress.checkpoint.published import format_of
from coldpress.errors import CheckpointError, ModelError
from coldpress.foreign import reading
from coldpress.format import Format
from coldpress.installed import extra_called
from coldpress.models.hub import on_this_disk
from coldpress.models.location import Location, locate
from coldpress.registry import names
from coldpress.source import Weights
from coldpress.spelling import suggest

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # that a model is computed in


@frozen(eq=False)
class Opened:
    """A checkpoint that is about to be compressed.

    Attributes:
        name: what the user called it.
        folder: where it lies.
        stored: its tensors as they lie in the files.
        weights: the tensors of the dense model.
        config: `config.json`, parsed.
        quantization: what that says of how weights are stored; empty where they are whole.
        form: that wrote it; None where none did.
        left_out: small files that speak of how weights were stored, and so do not come along.
    """

    name: str
    folder: Path
    stored: CheckpointReader
    weights: Weights
    config: Mapping[str, Any]
    quantization: Mapping[str, Any]
    form: Format | None = None
    left_out: frozenset[str] = frozenset()

    def dtype(self) -> torch.dtype | None:
        """The dtype of the model: what its configuration says, or else that of most bytes that are no codes."""
        return dtype_of(self.config) or self._usual_dtype()

    def _usual_dtype(self) -> torch.dtype | None:
        sizes = Counter[torch.dtype]()
        for name in self.weights.names():
            if tuple(self.weights.made_of(name)) == (name,) and self.stored.dtype(name) in _DTYPES:
                sizes[self.stored.dtype(name)] += self.stored.nbytes(name)
        return max(sizes, key=sizes.__getitem__, default=None)

    def attached(self) -> list[Attached]:
        """What the checkpoint has attached to modules, such as scales of keys and values.

        Raises:
            CheckpointError: one of them is more than tensors beside the module.
        """
        if self.form is None:
            return []
        lookup, found = self.form.attachments(self.quantization), []
        suffixes: dict[str, set[str]] = {}
        for name in self.weights.names():
            owner, _, part = name.rpartition(".")
            suffixes.setdefault(owner, set()).add(part)
        for owner, own in suffixes.items():
            kinds = (
                (("Attention",), ("Linear",)) if any(part.startswith("weight") for part in own) else (("Attention",),)
            )
            found += [Attached(owner, kind, one) for kind in kinds for one in lookup(owner, kind, own)]
        other = next((one for one in found if one.attachment.shared or not one.attachment.buffers()), None)
        if other is not None:
            raise CheckpointError(
                f"{other.name} of {self.name} has the attachment {other.attachment.kind!r}, which acts on the forward "
                "of a model: use oneshot (leave out --model-free)"
            )
        return found


def open_checkpoint(model: str, *, revision: str = "main") -> Opened:
    """The checkpoint that a user names; every header is read, and no tensor.

    Args:
        model: a folder or a hub id.
        revision: of a model on a hub.

    Raises:
        ModelError: there is no such model, it is no folder of safetensors files, or nothing installed reads how its
            weights are quantized.
        CheckpointError: a file is missing, damaged, or holds a tensor that another one holds too; or there is none.
    """
    found = on_this_disk(locate(model), revision)
    assert found.path is not None
    if not found.path.is_dir():
        raise ModelError(
            f"{model!r} is a file, and without a model only folders of safetensors files are compressed: use oneshot "
            "(leave out --model-free)"
        )
    stored = CheckpointReader(found.path)
    stored.check()
    if not stored.names():
        raise CheckpointError(f"{found.path} has no tensors: name the folder that holds the model")
    stored.warn_of_passed_over()
    config = stored.config()
    quantization = quantization_in(config)
    if found.source is not None:
        return _by_source(found, stored, config, quantization)
    if not quantization:
        return Opened(found.name, found.path, stored, stored, config, {})
    form = format_of(quantization)
    if form is None:
        raise _unknown(found.name, quantization)
    return Opened(found.name, found.path, stored, FormatWeights(stored, form, quantization), config, quantization, form)


def dtype_of(config: Mapping[str, Any]) -> torch.dtype | None:
    """The dtype of the weights, as a configuration names it."""
    for table in tables(config):
        for key in ("dtype", "torch_dtype"):
            found = getattr(torch, str(table.get(key)).removeprefix("torch."), None)
            if isinstance(found, torch.dtype) and found.is_floating_point:
                return found
    return None


def _by_source(
    found: Location, stored: CheckpointReader, config: Mapping[str, Any], quantization: Mapping[str, Any]
) -> Opened:
    with reading(f"{found.name} cannot be read", ModelError):
        source = found.open()
        weights = source.weights()
    if weights is None or found.path is None:
        raise ModelError(
            f"{found.name!r}: {type(source).__name__} builds the model as a whole: use oneshot (leave out --model-free)"
        )
    return Opened(found.name, found.path, stored, weights, config, quantization, left_out=source.own_files)


def _unknown(name: str, quantization: Mapping[str, Any]) -> ModelError:
    method = quantization.get("quant_method")
    known = sorted(names("formats") | names("sources"))
    extra = extra_called(str(method)) if method else None
    remedy = f"pip install 'coldpress[{extra}]'" if extra else "start from the dense model"
    fault = "names no quant_method" if method is None else f"says {method!r}, which no installed format or source reads"
    return ModelError(
        f"{name!r} is quantized, and its config.json {fault}{suggest(str(method), known)} (there are "
        f"{', '.join(known)}); {remedy}"
    )
