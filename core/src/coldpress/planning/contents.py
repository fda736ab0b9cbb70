"""What a job will write: every tensor of the checkpoint, stage by stage, as its format makes it of shapes."""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path

import torch
from attrs import field, frozen
from torch import Tensor

from coldpress.bases.without_data import without_data
from coldpress.checkpoint.consolidate import Place, shards_of
from coldpress.checkpoint.shard import Entry, header_of
from coldpress.dataflow.empty import empty_copy
from coldpress.format import REST, Format
from coldpress.models.tie import untie
from coldpress.run.job import Job
from coldpress.run.quantized_before import attached_before
from coldpress.run.ties import separate_layers
from coldpress.stage import find_layers
from coldpress.state import State

_NOWHERE = Path()

Kind = tuple[torch.dtype, tuple[int, ...]]


@frozen(eq=False)
class PlannedContents:
    """The tensors of a checkpoint that is not written yet.

    Attributes:
        stages: name of a stage to its tensors, each by its name on disk.
        max_shard_size: bytes of tensors in a file, at most.
        publishes: whether the format writes another container, of these tensors.
        uncounted: names of attachments whose tensors are not known before they are attached.
    """

    stages: Mapping[str, Mapping[str, Kind]]
    max_shard_size: int
    publishes: bool = False
    uncounted: tuple[str, ...] = ()
    tensors: Mapping[str, Kind] = field(init=False)

    @tensors.default
    def _join(self) -> Mapping[str, Kind]:
        return {name: kind for tensors in self.stages.values() for name, kind in tensors.items()}

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(map(nbytes_of, self.tensors.values()))

    def stage_nbytes(self, name: str) -> int:
        """Bytes of the tensors of a stage."""
        return sum(map(nbytes_of, self.stages.get(name, {}).values()))

    def layer_nbytes(self, layer: str) -> int:
        """Bytes of what is written of a layer, by its name on disk."""
        return sum(nbytes_of(kind) for name, kind in self.tensors.items() if name.rpartition(".")[0] == layer)

    def file_nbytes(self) -> int | None:
        """Bytes of the safetensors files, headers included; None where the format writes another container."""
        return None if self.publishes else sum(_file_nbytes(shard) for shard in self._shards())

    def disk_nbytes(self) -> int:
        """The most that lies on the disk while the run works: files of stages, and the checkpoint made of them."""
        parts = sum(_file_nbytes(tensors) for tensors in self.stages.values() if tensors)
        shards = self._shards()
        linked = [shard for shard in shards if any(shard.keys() == tensors.keys() for tensors in self.stages.values())]
        return parts + sum(_file_nbytes(shard) for shard in shards if shard not in linked)

    def _shards(self) -> Sequence[Mapping[str, Kind]]:
        places = ((name, Place(_NOWHERE, Entry(*kind, 0, nbytes_of(kind)))) for name, kind in self.tensors.items())
        return [{name: self.tensors[name] for name in shard} for shard in shards_of(places, self.max_shard_size)]


def planned_contents(job: Job) -> PlannedContents:
    """What a planned job will write, from shapes alone.

    Args:
        job: with an output, after `plan`; its model is not touched.
    """
    assert job.output is not None
    model = empty_copy(job.state.model)
    untie(model, separate_layers(job.claims, job.modifiers, model))
    uncounted = _attach(job, model)
    planned = {name: one.scheme for name, one in job.state.plan.items()}
    state = State(model=model, schemes={**job.state.schemes, **planned})
    for layer in find_layers(model.named_modules()):
        if layer.name in state.schemes:
            state.quantized[layer.name] = without_data(state.schemes[layer.name], layer.weight)
    output = job.output.rehearsal()
    output.prepare(state, state.schemes)
    outline = job.pipeline.outline(State(model=model, batches=job.state.batches))
    stages = {stage.name: _kinds(output.promised(stage, state)) for stage in outline.stages}
    attached = [*job.announced, *attached_before(job.state.model, job.announced)]
    shared = output.promised_shared([one for _, one in attached])
    rest = {**output.promised(output.rest(state), state), **shared, **output.promised_extra()}
    form = job.output.format
    return PlannedContents(
        stages={**stages, REST: _kinds(rest)} if rest else stages,
        max_shard_size=job.output.max_shard_size,
        publishes=type(form).publish is not Format.publish,
        uncounted=tuple(uncounted),
    )


def nbytes_of(kind: Kind) -> int:
    """Bytes of a tensor of this dtype and shape."""
    dtype, shape = kind
    return prod(shape) * dtype.itemsize


def _attach(job: Job, model: torch.nn.Module) -> Iterable[str]:
    """Give modules the buffers that announced attachments will bring; the kinds of those that do not say which."""
    unknown = []
    dtype = getattr(model, "dtype", torch.float32)
    for _, attached in job.announced:
        if attached.attachment.shared:
            continue
        module = model.get_submodule(attached.name)
        shapes = attached.attachment.buffer_shapes(module)
        if shapes is None:
            unknown.append(f"{attached.name}: {attached.attachment.kind}")
            continue
        for name, shape in shapes.items():
            module.register_buffer(name, _meta(shape, dtype))
    return unknown


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, Kind]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def _file_nbytes(tensors: Mapping[str, Kind]) -> int:
    _, header = header_of(tensors)
    return len(header) + sum(map(nbytes_of, tensors.values()))


def _meta(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
