"""A GGUF file from the tensors of a run, one after the other: what it is told of each, and where it comes from."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from coldpress.plugin import CheckpointError, Parts
from coldpress_gguf.architecture import (
    Architecture,
    Names,
    architecture_of,
    expert_of,
    heads_of,
    keys_of,
    rope_factors,
    scaling_name,
)
from coldpress_gguf.vocabulary import Vocabulary, write_vocabulary

BLOCKS, FACTOR = "blocks", "blocks_global_scale"
"""Suffixes of the tensors that the format makes of a layer: its blocks, and what NVFP4's scales were multiplied by."""

ORIGIN = "coldpress.tensors"
"""The key that says where each tensor comes from, so that it can be read back."""

_PLAIN = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F32"}


@frozen
class Entry:
    """A tensor of the file.

    Attributes:
        name: in the file.
        parts: names of the tensors that it is made of, those of experts in their order.
        kind: its type.
        shape: of each part, in bytes where it is blocks.
        stacked: whether the parts are experts, which have a dimension of their own.
        dtype: of the parts.
        heads: of which its rows are, where they are put in another order.
        more: what is added to it.
        reciprocals: its numbers, where it holds one over them.
        also: names of other tensors of the run that it stands for.
    """

    name: str
    parts: Sequence[str]
    kind: str
    shape: tuple[int, ...]
    stacked: bool
    dtype: str
    heads: int | None = None
    more: float = 0.0
    reciprocals: Sequence[float] | None = field(default=None)
    also: Sequence[str] = ()

    def record(self) -> dict[str, Any]:
        """What reading it back takes."""
        fields = {"parts": list(self.parts), "dtype": self.dtype, "stacked": self.stacked, "heads": self.heads}
        return {**fields, "more": self.more, "reciprocals": self.reciprocals, "also": list(self.also)}

    def made(self, parts: Parts) -> Tensor:
        """What the file holds, uint8 where it is blocks or bfloat16."""
        tensors = [self._one(parts.read(name)) for name in self.parts]
        return torch.stack(tensors) if self.stacked else tensors[0]

    def _one(self, tensor: Tensor) -> Tensor:
        if self.reciprocals is not None:
            return 1 / tensor.float().reshape(() if self.stacked else (1,))
        if self.heads is not None:
            tensor = side_by_side(tensor, self.heads)
        if tensor.dtype == torch.uint8:
            return tensor
        tensor = tensor.float() + self.more if self.more else tensor
        if self.kind == "BF16":
            return tensor.contiguous().view(torch.uint8)
        return tensor.to(torch.float16 if self.kind == "F16" else torch.float32)


def entries_of(parts: Parts, config: Any, architecture: Architecture, kinds: Mapping[str, str]) -> list[Entry]:
    """The tensors of a file, in the order of the run.

    Args:
        parts: of the run.
        config: of the model.
        architecture: of the model.
        kinds: layer name to the type of its blocks.
    """
    names, groups = Names(config, architecture), dict[str, list[str]]()
    for name in parts.names():
        module, _, suffix = name.rpartition(".")
        home = f"{names.of(module)}.{_SUFFIXES[suffix]}" if suffix in _SUFFIXES else names.tensor(name)
        groups.setdefault(home, []).append(name)
    return [_entry(name, members, parts, config, architecture, kinds) for name, members in groups.items()]


def tied(entries: Sequence[Entry], parts: Parts) -> list[Entry]:
    """The entries without that of a head whose bytes are the embedding's, which llama.cpp runs as the head then."""
    named = {entry.name: entry for entry in entries}
    embedding, head = named.get("token_embd.weight"), named.get("output.weight")
    if embedding is None or head is None or "output.scale" in named or embedding.kind != head.kind:
        return list(entries)
    if embedding.shape != head.shape or not torch.equal(embedding.made(parts), head.made(parts)):
        return list(entries)
    return [evolve(one, also=head.parts) if one is embedding else one for one in entries if one is not head]


_SUFFIXES = {BLOCKS: "weight", FACTOR: "scale"}


def _entry(
    name: str,
    members: list[str],
    parts: Parts,
    config: Any,
    architecture: Architecture,
    kinds: Mapping[str, str],
) -> Entry:
    module, _, suffix = members[0].rpartition(".")
    stacked = expert_of(module) is not None
    members = sorted(members, key=lambda one: expert_of(one.rpartition(".")[0]) or 0)
    shape, dtype = parts.shape(members[0]), parts.dtype(members[0])
    found = {(kinds.get(one.rpartition(".")[0]), parts.shape(one), parts.dtype(one)) for one in members}
    if len(found) > 1:  # refused by `check_experts`
        raise CheckpointError(f"{name} cannot be written: {len(members)} experts are one tensor, and differ in type")
    dtype_name = str(dtype).removeprefix("torch.")
    if suffix == FACTOR:
        numbers = [float(parts.read(one)) for one in members]
        return Entry(name, members, "F32", () if stacked else (1,), stacked, dtype_name, reciprocals=numbers)
    if suffix == BLOCKS:
        return Entry(name, members, kinds[module], shape, stacked, dtype_name, heads_of(module, config, architecture))
    exact = len(shape) < 2 or "ffn_gate_inp" in name
    more = architecture.norms if name.endswith("norm.weight") else 0.0
    kind = "F32" if exact else _PLAIN[dtype]
    return Entry(name, members, kind, shape, stacked, dtype_name, heads_of(module, config, architecture), more)


@frozen
class Header:
    """What a file says of the model before its tensors.

    Attributes:
        config: of the model.
        vocabulary: of its tokenizer; None for a file without one.
        file_type: a label.
    """

    config: Any
    vocabulary: Vocabulary | None
    file_type: int


def write_file(path: Path, entries: Sequence[Entry], parts: Parts, header: Header, *, split_max_size: int) -> None:
    """Write `path`, or files of its name and their numbers.

    Args:
        path: of the file, in a folder with tokenizer.json.
        entries: its tensors.
        parts: that they are made of; one is in memory at a time.
        header: what comes before them.
        split_max_size: bytes of a file, 0 for one file.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    config, architecture = header.config, architecture_of(header.config)
    writer = GGUFWriter(path, architecture.name, split_max_size=split_max_size)
    _write_keys(writer, header, architecture, path.parent)
    writer.add_string(ORIGIN, json.dumps({entry.name: entry.record() for entry in entries}))
    factors = rope_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", (len(factors),), _numpy("float32"), 4 * len(factors))
    for entry in entries:
        shape = (len(entry.parts), *entry.shape) if entry.stacked else entry.shape
        raw = entry.dtype == "uint8" or entry.kind == "BF16"
        nbytes = _count(shape) * _itemsize(entry)
        kind = GGMLQuantizationType[entry.kind]
        place = (*shape[:-1], 2 * shape[-1]) if entry.kind == "BF16" else shape
        writer.add_tensor_info(entry.name, place, _numpy("uint8" if raw else "float32"), nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(torch.tensor(factors).numpy())
    for entry in entries:
        writer.write_tensor_data(entry.made(parts).contiguous().numpy())
    writer.close()


def side_by_side(rows: Tensor, heads: int) -> Tensor:
    """Two halves of a head's rows as pairs, [heads * d, ...]; see `Architecture.rotates_pairs`."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def apart(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `side_by_side`."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _write_keys(writer: Any, header: Header, architecture: Architecture, folder: Path) -> None:
    config = header.config
    writer.add_type("model")
    writer.add_name(str(getattr(config, "_name_or_path", "") or config.model_type))
    writer.add_file_type(header.file_type)
    writer.add_quantization_version(2)
    for key, value in keys_of(config, architecture).items():
        _add(writer, f"{architecture.name}.{key}", value)
    scaling = scaling_name(config)
    if scaling is not None:
        writer.add_string(f"{architecture.name}.rope.scaling.type", scaling)
    if header.vocabulary is None:
        writer.add_tokenizer_model("none")
    else:
        write_vocabulary(writer, header.vocabulary, folder)


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, value)


def _itemsize(entry: Entry) -> int:
    return {"F32": 4, "F16": 2, "BF16": 2}.get(entry.kind, 1)


def _numpy(name: str) -> Any:
    import numpy

    return numpy.dtype(name)


def _count(shape: Iterable[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total
