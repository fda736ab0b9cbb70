"""What ties finished stages to a run: they are of use only to a run that works on the same."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from coldpress.checkpoint import fingerprint
from coldpress.checkpoint.journal import FILES
from coldpress.state import State


def binding_of(
    state: State, *, job: Mapping[str, str], files: Sequence[Path] | None, before: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that the bytes of a checkpoint depend on, by text or hash.

    Args:
        state: before the first stage.
        job: what is done, in words: recipe, pipeline, format, device, ...
        files: that the weights are read from; None when they are in memory.
        before: the binding of an interrupted run; spares reading files again that were not touched since.
    """
    weights: Any
    seen: dict[str, Any] = {}
    if files is None:
        weights = fingerprint.of_model(state.model)
    else:
        weights, seen = fingerprint.of_files(files, before.get(FILES, {}))
    return {
        **job,
        "model": weights,
        "configuration": fingerprint.of_config(state.model),
        "dtype": str(next((tensor.dtype for tensor in state.model.parameters()), None)),
        "data": fingerprint.of_batches(state.batches),
        "seed": state.seed,
        "coldpress": version("coldpress"),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        FILES: seen,
    }
