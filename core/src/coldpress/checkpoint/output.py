"""Output: the checkpoint of a run, written stage by stage in the form that a format plugin gives it."""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from attrs import evolve
from torch import Tensor, nn

from coldpress.attachment import Attached
from coldpress.checkpoint.attachments import SharedBuffers, attachments_of, recall_attachments, record_attachments
from coldpress.checkpoint.companion import CONFIG, GENERATION_CONFIG, Origin, copy_companions
from coldpress.checkpoint.config import check_storable, is_generation_config_of, without_quantization
from coldpress.checkpoint.disk import disk_errors
from coldpress.checkpoint.named import (
    NamedWriter,
    joined_parts,
    joint_tensors,
    schemes_on_disk,
    unquantized_on_disk,
)
from coldpress.checkpoint.names import CheckpointNames, checkpoint_names
from coldpress.checkpoint.parts import StageParts
from coldpress.checkpoint.replaced import MANIFEST
from coldpress.checkpoint.restore import own_tensors, refuse_extra_state, restored, restored_layer
from coldpress.checkpoint.stored import as_stored
from coldpress.checkpoint.tie import WrittenNames, written_names
from coldpress.checkpoint.writer import CheckpointWriter
from coldpress.errors import BrokenPluginError, CheckpointError, ColdpressError, SchemeError
from coldpress.format import REST, Format
from coldpress.layer_report import LayerReport
from coldpress.quantized import Quantized, encoding_of, set_encoding
from coldpress.schemes import Scheme, describe
from coldpress.source import Weights
from coldpress.stage import Stage, class_names, find_layers, oriented
from coldpress.state import State


class Output:
    """A context: entered, a checkpoint is being written; left without `finish`, only finished stages are kept.

    Args:
        writer: where tensors and files go.
        form: how a quantized layer becomes tensors.
        origin: where the model comes from, whose small files are copied; None where that is not known.
    """

    writes = True
    """Whether it does, and not another process of the run."""

    def __init__(self, writer: CheckpointWriter, form: Format, origin: Origin | None = None) -> None:
        self.format = form
        self._origin = origin
        self._files: Weights | None = None
        self._writer = writer
        self._written: set[str] = set()
        self._ties: WrittenNames | None = None  # known when the first stage is written: by then layers are untied
        self._names = CheckpointNames()
        self._named = NamedWriter(writer, self._names, {})
        self._shared = SharedBuffers(writer.read_beside)

    @property
    def folder(self) -> Path:
        """The unfinished checkpoint."""
        return self._writer.folder

    @property
    def unfinished(self) -> Mapping[str, Any]:
        """What an interrupted run has worked on that left stages here."""
        return self._writer.unfinished

    @property
    def max_shard_size(self) -> int:
        """Bytes of tensors in a file, at most."""
        return self._writer.max_shard_size

    def nbytes(self) -> int:
        """Bytes of the tensors that are written so far."""
        return self._writer.nbytes()

    def on_disk(self, layer: str) -> str:
        """What a layer is called in the checkpoint, after `prepare`."""
        return self._names.layer(layer)

    def rehearsal(self) -> "Output":
        """Another one of the same checkpoint, whose `promised` says what will be written and which writes nothing."""
        return Output(self._writer, self.format, self._origin)

    def __enter__(self) -> "Output":
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def prepare(
        self, state: State, schemes: Mapping[str, Scheme], announced: Sequence[tuple[str, Attached]] = ()
    ) -> None:
        """See whether a model can be written, and learn what its tensors are called on disk.

        Args:
            state: of the run; experts of its model, if it has any, are linear layers.
            schemes: of all layers that are or will be quantized.
            announced: what is or will be attached, with the name of what attaches it.

        Raises:
            SchemeError: a layer or attachment cannot be written in this format.
            CheckpointError: transformers makes the joint tensors of experts of others when it loads them.
        """
        model: Any = state.model
        check_storable(model.config)
        refuse_extra_state(model)
        for name, scheme in schemes.items():
            layer = next(find_layers([(name, model.get_submodule(name))]))
            self.format.check(scheme, name, (layer.weight.shape[0], layer.weight.shape[1]))
        names = checkpoint_names(model)
        plain = self.format.config(schemes, []) is None
        remade = next((name for name in names.remade if name.rpartition(".")[0] in names.fused), None)
        if plain and remade is not None:
            raise CheckpointError(f"{remade}: a dense checkpoint of it cannot be written; choose compressed-tensors")
        self._names = names if plain else evolve(names, fused=frozenset(), turned={})
        self._named = NamedWriter(self._writer, self._names, joined_parts(model, self._names))
        self.format.check_model(state, [self._names.on_disk(name) for name, _ in model.named_parameters()])
        for owner, attached in announced:
            try:
                self.format.check_attachment(evolve(attached, name=self._names.layer(attached.name)))
            except SchemeError as error:
                raise SchemeError(f"{owner}: {error}") from error

    def begin(self, binding: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """Go on after the stages that an interrupted run has finished, or begin anew.

        Returns:
            A record of each stage that is kept, for `recall`.

        Raises:
            CheckpointError: the interrupted run worked on something else.
        """
        return self._writer.begin(binding)

    def note(self, record: Mapping[str, Any]) -> None:
        """Make a record durable that belongs to no stage's tensors; `begin` returns it again."""
        self._writer.commit(record)

    def note_tensors(self, record: Mapping[str, Any], name: str, tensors: Mapping[str, Tensor]) -> None:
        """Make a record durable, and tensors that are no part of the checkpoint; `noted_tensors` reads them again."""
        self._writer.commit_beside(record, name, tensors)

    def noted_tensors(self, name: str) -> dict[str, Tensor]:
        """What `note_tensors` was given under this name, in this run or the one that it resumes."""
        return self._writer.read_beside(name)

    def write(self, stage: Stage, state: State) -> None:
        """Write every tensor of a finished stage; a tensor that several modules share is written once."""
        for name, buffers in self._shared.added(stage.modules):
            self._writer.commit_beside({"stage": stage.name}, name, {part: x.cpu() for part, x in buffers.items()})
        for tensors in self._of_modules(stage, state):
            self._named.add(tensors)

    def promised(self, stage: Stage, state: State) -> dict[str, Tensor]:
        """What `write` would write of a stage, by the names on disk; tensors are on the meta device where weights are.

        Args:
            stage: of a model whose weights may be on the meta device.
            state: with codes and scales of the layers that will be quantized, on the meta device too.
        """
        parts = self._of_modules(stage, state)
        return {
            self._names.on_disk(name): self._names.saved(name, x) for tensors in parts for name, x in tensors.items()
        }

    def promised_shared(self, announced: Sequence[Attached]) -> Mapping[str, Tensor]:
        """What will be written for attachments beside their buffers."""
        return self.format.attachment_tensors([evolve(one, name=self._names.layer(one.name)) for one in announced])

    def promised_extra(self) -> dict[str, Tensor]:
        """What comes along of the model's files without being a part of it, by name, on the meta device."""
        extra = self._origin.extra if self._origin is not None else ()
        return {name: self._without_data(name) for name in extra}

    def keep(self, stage: Stage, state: State) -> list[dict[str, str]]:
        """Make durable what was written of a stage, with all that a later run must know of it to go on after it.

        Returns:
            Name and checksum of each file of the stage.
        """
        layers = [layer.name for layer in stage.every_layer]
        record = {
            "stage": stage.name,
            "report": [state.report[name].to_dict() for name in layers],
            "schemes": {name: state.schemes[name].to_dict() for name in layers if name in state.schemes},
            "attachments": record_attachments(stage.modules, self._shared),
            "log": state.log[-1],
        }
        return self._writer.commit(record)

    def recall(self, stage: Stage, record: Mapping[str, Any], state: State) -> None:
        """Put into the state, and on the modules, what a record of this stage says of them, but for tensors."""
        recall_attachments(record["attachments"], stage.modules, state.model, self._shared)
        for name, module in stage.modules.items():
            self._written.update(full for full, _ in self._unwritten(name, module, state.model))
        for line in record["report"]:
            state.report[line["name"]] = LayerReport.from_dict(line)
        state.schemes.update({name: Scheme.from_dict(data) for name, data in record["schemes"].items()})
        state.log.append(dict(record["log"]))

    def weights(self, modules: Mapping[str, nn.Module], state: State) -> Iterator[tuple[str, Tensor]]:
        """The parameters and saved buffers of modules that are written, as a model in memory has them."""
        return restored(self._named, self.format, modules, state.schemes, self._ties_of(state.model))

    def encode(self, stage: Stage, state: State) -> None:
        """Note on the modules of a stage that is written how their weights were encoded."""
        for layer in stage.every_layer:
            if layer.name in state.schemes and self.format.config(state.schemes, []) is not None:
                quantized = restored_layer(
                    self._named, self.format, layer.module, layer.name, state.schemes[layer.name]
                )
                set_encoding(layer.module, quantized, layer.weight)

    def rest(self, state: State) -> Stage:
        """The modules of which something is not written yet."""
        modules = dict(state.model.named_modules())
        return Stage(REST, 0, {n: m for n, m in modules.items() if any(self._unwritten(n, m, state.model))})

    def write_others(self, state: State) -> None:
        """Write, after all stages, what attachments share, and what comes along of the model's files."""
        if attached := attachments_of(state.model, self._names):
            self._writer.add(self.format.attachment_tensors(attached))
        for name in self._origin.extra if self._origin is not None else ():
            self._writer.add({name: self._open().get(name)})

    def finish(self, state: State, files: Mapping[str, Any], *, left: Collection[str] = ()) -> None:
        """Write what is not a weight, after all weights are written, and give the folder its name.

        Args:
            state: of the finished run.
            files: name to content of what the run has to say: text, or a table for JSON.
            left: names of files that lie where the checkpoint will, such as a tokenizer that was saved there before:
                they win over files that come along.
        """
        origin = self._origin
        self._write_config(state, origin.extra if origin is not None else ())
        self._write_generation_config(state.model, origin)
        if origin is not None:
            with disk_errors(self.folder):
                copy_companions(origin, self.folder)
        if state.tokenizer is not None and not (origin and origin.has_tokenizer):
            state.tokenizer.save_pretrained(self.folder)
        for name in left:
            if name not in (CONFIG, GENERATION_CONFIG):
                (self.folder / name).unlink(missing_ok=True)
        for name, content in files.items():
            if isinstance(content, str):
                self._writer.write_text(name, content)
            elif name != MANIFEST:
                self._writer.write_json(name, content)
        self._writer.finish(files.get(MANIFEST), publish=partial(self._publish, state))

    def _publish(self, state: State, parts: StageParts, folder: Path) -> None:
        """Have the format write the container, and see that it leaves no tensor out.

        Raises:
            BrokenPluginError: the format fails, or left one out.
        """
        name = type(self.format).__name__
        try:
            self.format.publish(parts, folder, state)
        except (ColdpressError, OSError):
            raise
        except Exception as error:
            raise BrokenPluginError(f"{name}.publish fails: {type(error).__name__}: {error}") from error
        left = parts.unread()
        if left:
            raise BrokenPluginError(f"{name}.publish left out {len(left)} tensors, the first is {left[0]!r}")

    def _of_modules(self, stage: Stage, state: State) -> Iterator[dict[str, Tensor]]:
        """The tensors of a stage that are not written yet, module by module, by their names in memory."""
        for name, module in stage.modules.items():
            joint = dict(joint_tensors(name, module, self._names))
            if joint:
                self._written.update(full for full in self._named.joined if full.startswith(f"{name}."))
            yield joint or _distinct(self._tensors(name, module, state))

    def _unwritten(self, name: str, module: nn.Module, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Every name that a tensor of a module must be written under and is not yet, and the tensor."""
        written = self._ties_of(model)
        for part, tensor in own_tensors(module):
            yield from ((full, tensor) for full in written.of(name, part) if full not in self._written)

    def _ties_of(self, model: nn.Module) -> WrittenNames:
        if self._ties is None:
            self._ties = written_names(model)
        return self._ties

    def _tensors(self, name: str, module: nn.Module, state: State) -> Iterator[tuple[str, Tensor]]:
        for full, tensor in list(self._unwritten(name, module, state.model)):
            self._written.add(full)
            part = full.rpartition(".")[2]
            quantized = _quantized(name, module, state) if part == "weight" else None
            if quantized is None:
                yield full, self._as_stored(full, tensor.detach())
                continue
            for suffix, packed in self.format.tensors(quantized).items():
                whole = suffix.rpartition(":")[2] == "weight"  # of one of several formats, or of the only one
                stored = oriented(packed, class_names(module)).contiguous() if whole else packed
                yield full.removesuffix("weight") + suffix, stored

    def _as_stored(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor that is not quantized in the dtype that the model's files have, unless it was changed."""
        stored = None if self._origin is None else self._origin.stored.get(name)
        if stored is None:
            return tensor
        return self._without_data(stored) if tensor.is_meta else as_stored(tensor, self._open(), stored)

    def _without_data(self, name: str) -> Tensor:
        """A tensor of the model's files, from their headers."""
        files = self._open()
        return torch.empty(files.shape(name), dtype=files.dtype(name), device="meta")

    def _open(self) -> Weights:
        assert self._origin is not None
        self._files = self._files or self._origin.open()
        return self._files

    def _write_config(self, state: State, extra: Sequence[str]) -> None:
        """config.json with what the format says of the quantization, and nothing of how the model was stored before."""
        model: Any = state.model
        config = without_quantization(deepcopy(model.config))
        config.architectures = [type(model).__name__]
        config.dtype = model.dtype
        config.save_pretrained(self.folder)
        ignored = unquantized_on_disk(model, state.schemes, self._names)
        ignored += [name.removesuffix(".weight") for name in extra if name.endswith(".weight")]
        schemes, attached = schemes_on_disk(state.schemes, self._names), attachments_of(model, self._names)
        more = (attached,) if attached else ()  # a format that can tell none need not know of them
        quantization = self.format.config(schemes, ignored, *more)
        if quantization is not None:
            quantization = self.format.config_for(quantization, lambda: model, state.schemes)
            saved = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
            self._writer.write_json("config.json", {**saved, "quantization_config": quantization})

    def _write_generation_config(self, model: Any, origin: Origin | None) -> None:
        """The settings of generation: the bytes of the model's folder where they still are the model's."""
        if not model.can_generate():
            return
        path = None if origin is None else origin.folder / GENERATION_CONFIG
        if path is not None and path.is_file() and is_generation_config_of(model, path):
            with disk_errors(path):
                shutil.copyfile(path, self.folder / GENERATION_CONFIG)
            return
        # Not save_pretrained, which refuses a temperature beside do_sample=False, as many models have it.
        text = model.generation_config.to_json_string(use_diff=True, keys_to_pop=["compile_config"])
        self._writer.write_text(GENERATION_CONFIG, text)


def _distinct(tensors: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by their names.

    Raises:
        CheckpointError: a module has a tensor of its own that is called as a part of its quantized weight is.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if name in found:
            raise CheckpointError(
                f"{name} of the model has the name that the checkpoint needs for a part of the quantized weight beside "
                "it: rename it, or ignore the layer"
            )
        found[name] = tensor
    return found


def _quantized(name: str, module: nn.Module, state: State) -> Quantized | None:
    """The codes and scales of a layer: of this run, or of an earlier one, encoded again; None where it is dense.

    Raises:
        CheckpointError: its weight was changed since it was quantized.
    """
    found, encoding = state.quantized.get(name), encoding_of(module)
    if found is not None or name not in state.schemes or encoding is None:
        return found
    (layer,) = find_layers([(name, module)])
    found = encoding.encode(layer.weight)
    if found is None:
        raise CheckpointError(
            f"{name}.weight was changed after it was quantized ({describe(encoding.quantized.scheme)}), and is no "
            "longer what any codes stand for: quantize the model again with oneshot, or save it with "
            "save_compressed=False"
        )
    return found
