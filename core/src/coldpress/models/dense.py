"""A model on disk whose dense tensors can be read one by one, whatever container they are in; and built of them."""

import re
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from coldpress.checkpoint import CheckpointReader
from coldpress.checkpoint.pickled import open_files
from coldpress.errors import ArgumentError, CheckpointError, ModelError
from coldpress.foreign import reading
from coldpress.models.auto import build_model
from coldpress.models.configuration import load_config, read_generation_settings
from coldpress.models.location import Location
from coldpress.models.promise import check_promises, check_size
from coldpress.models.quiet import no_bar
from coldpress.models.streaming import without_weights
from coldpress.source import Source, Weights


@frozen(eq=False)
class DenseCheckpoint:
    """A model that is read tensor by tensor.

    Attributes:
        name: what the user called it.
        weights: its tensors.
        config: of the dense model, for transformers.
        folder: whose small files belong to the model; None where the container is a file.
    """

    name: str
    weights: Weights
    config: Any
    folder: Path | None

    def dtype(self, wanted: Any) -> torch.dtype:
        """The dtype of the model's weights where `wanted` is "auto": the configuration's, or else that of the files."""
        if wanted != "auto":
            return wanted  # type: ignore[no-any-return]
        names, read = self.weights.names(), self.weights.dtype
        configured: torch.dtype | None = getattr(self.config, "dtype", None)
        return configured or next((read(name) for name in names if read(name).is_floating_point), torch.float32)

    def empty(self, dtype: torch.dtype, *, trust_remote_code: bool) -> Any:
        """The model with its parameters on the meta device, those that its class keeps in float32 in that; buffers are
        computed.

        Raises:
            ModelError: transformers cannot build it.
        """
        check_promises(self.config, self.weights.names(), self.name)
        check_size(
            self.config,
            lambda config: build_model(config, dtype=dtype, trust_remote_code=trust_remote_code),
            self.weights,
            self.name,
        )
        with reading(f"transformers cannot build the model of {self.name!r}", ModelError):
            with without_weights():
                model = build_model(self.config, dtype=dtype, trust_remote_code=trust_remote_code)
            if self.folder is not None:
                read_generation_settings(model, self.folder)
        _keep_float32(model, dtype)
        return model


def folder_checkpoint(
    name: str, folder: Path, *, config: Any = None, trust_remote_code: bool = False
) -> DenseCheckpoint:
    """A folder of safetensors files, or of `.bin` files where there are none, that is not compressed.

    Args:
        name: what the user called it.
        folder: with its config.json.
        config: use this configuration instead of the folder's.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        CheckpointError: a file is damaged.
        ModelError: transformers cannot read the configuration.
    """
    reader = open_files(folder)
    reader.check()
    if isinstance(reader, CheckpointReader):
        reader.warn_of_passed_over()
    settings = load_config(str(folder), trust_remote_code=trust_remote_code) if config is None else config
    return DenseCheckpoint(name, reader, settings, folder)


def source_checkpoint(
    location: Location, source: Source, *, config: Any = None, trust_remote_code: bool = False
) -> DenseCheckpoint | None:
    """What a source reads; None where it can only build the model as a whole.

    Raises:
        ArgumentError: `config` is to replace a configuration that the container itself holds.
    """
    with reading(f"{source.path} cannot be read", ModelError):
        own, weights = source.config(), source.weights()
    if config is not None and (own is not None or weights is None):
        raise ArgumentError(f"{location.name} brings its own configuration, which cannot be replaced by another one")
    if weights is None:
        return None
    folder = source.path if source.path.is_dir() else None
    config = own if config is None else config
    if config is None:
        config = load_config(str(source.path), trust_remote_code=trust_remote_code)
    return DenseCheckpoint(location.name, weights, config, folder)


def load_dense(checkpoint: DenseCheckpoint, dtype: Any, *, trust_remote_code: bool = False) -> Any:
    """The model in memory, on the CPU, by transformers' own rules for the names of checkpoints.

    Raises:
        CheckpointError: a tensor of the model is missing.
    """
    kind = checkpoint.dtype(dtype)
    empty = checkpoint.empty(kind, trust_remote_code=trust_remote_code)
    wide = any(parameter.dtype != kind for parameter in empty.parameters())  # not all of it is in `kind`
    tensors = {}
    for name in checkpoint.weights.names():
        tensor = checkpoint.weights.read(name)
        tensors[name] = tensor.to(kind) if tensor.is_floating_point() and not wide else tensor
    with no_bar(), reading(f"transformers cannot fill the model of {checkpoint.name!r}", ModelError):
        model, loading = type(empty).from_pretrained(
            None, config=empty.config, state_dict=tensors, dtype=kind, output_loading_info=True
        )
    missing = sorted(loading["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{checkpoint.name!r} lacks {len(missing)} tensors of a {type(model).__name__}, the first is {missing[0]!r}"
        )
    model.generation_config = getattr(empty, "generation_config", None)
    return model


def _keep_float32(model: Any, dtype: torch.dtype) -> None:
    """Give parameters the dtype that transformers reads them in, where that is not the model's."""
    patterns = {name.replace("*", ".*") for name in getattr(model, "_keep_in_fp32_modules_strict", None) or ()}
    if dtype == torch.float16:
        patterns |= {name.replace("*", ".*") for name in getattr(model, "_keep_in_fp32_modules", None) or ()}
    if not patterns or dtype not in (torch.float16, torch.bfloat16):
        return
    kept = re.compile("|".join(f"({pattern})" for pattern in sorted(patterns)))
    for name, parameter in model.named_parameters():
        if kept.search(name):
            parameter.data = parameter.data.float()
