"""Output: the checkpoint of a run, written stage by stage in the form that a format plugin gives it."""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from coldpress.checkpoint.format import Format
from coldpress.checkpoint.writer import CheckpointWriter
from coldpress.stage import Stage, class_names, find_layers
from coldpress.state import State


class Output:
    """A context: entered, a checkpoint is being written; left without `finish`, nothing is left behind.

    Args:
        writer: where tensors and files go.
        form: how a quantized layer becomes tensors.
    """

    def __init__(self, writer: CheckpointWriter, form: Format) -> None:
        self.format = form
        self._writer = writer
        self._written: set[str] = set()

    @property
    def folder(self) -> Path:
        """The unfinished checkpoint."""
        return self._writer.folder

    def __enter__(self) -> "Output":
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def write(self, stage: Stage, state: State) -> None:
        """Write every tensor of a finished stage; a tensor that several modules share is written once."""
        names = _names_by_tensor(state.model)
        for name, module in stage.modules.items():
            self._writer.add(dict(self._tensors(name, module, state, names)))

    def rest(self, state: State) -> Stage:
        """The modules of which something is not written yet."""
        names = _names_by_tensor(state.model)
        modules = {
            name: module
            for name, module in state.model.named_modules()
            if any(self._written.isdisjoint(names[id(tensor)]) for _, tensor in _own_tensors(module))
        }
        return Stage("rest", 0, modules)

    def finish(self, state: State, *, recipe: str, report: Mapping[str, Any]) -> None:
        """Write what is not a weight, after all weights are written, and give the folder its name.

        Args:
            state: of the finished run.
            recipe: YAML that makes the same checkpoint again.
            report: what became of every layer.
        """
        self._write_config(state)
        if state.tokenizer is not None:
            state.tokenizer.save_pretrained(self.folder)
        self._writer.write_text("recipe.yaml", recipe)
        self._writer.write_json("report.json", report)
        self._writer.finish()

    def _tensors(
        self, name: str, module: nn.Module, state: State, names: Mapping[int, set[str]]
    ) -> Iterator[tuple[str, Tensor]]:
        dot = f"{name}." if name else ""
        for part, tensor in _own_tensors(module):
            if not self._written.isdisjoint(names[id(tensor)]):
                continue
            self._written.add(dot + part)
            quantized = state.quantized.get(name) if part == "weight" else None
            if quantized is None:
                yield dot + part, tensor.detach()
                continue
            for suffix, packed in self.format.tensors(quantized).items():
                turned = suffix == "weight" and "Conv1D" in class_names(module)  # it stores [I, O]
                yield dot + suffix, packed.t().contiguous() if turned else packed

    def _write_config(self, state: State) -> None:
        """config.json with what the format says of the quantization, and the settings of generation, unchanged."""
        model: Any = state.model
        config = deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.dtype = model.dtype
        config.save_pretrained(self.folder)
        ignored = [layer.name for layer in find_layers(model.named_modules()) if layer.name not in state.schemes]
        quantization = self.format.config(state.schemes, ignored)
        if quantization is not None:
            saved = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
            self._writer.write_json("config.json", {**saved, "quantization_config": quantization})
        if model.can_generate():
            model.generation_config.save_pretrained(self.folder)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and saved buffers that belong to this module itself."""
    yield from module.named_parameters(recurse=False)
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield name, buffer


def _names_by_tensor(model: nn.Module) -> dict[int, set[str]]:
    """The id of every parameter and buffer to all of its names; a tied one has several."""
    names: dict[int, set[str]] = {}
    for name, module in model.named_modules():
        for part, tensor in _own_tensors(module):
            names.setdefault(id(tensor), set()).add(f"{name}.{part}" if name else part)
    return names
