"""gguf: the file that llama.cpp runs, with the codes that were chosen and not their roundings."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from attrs import evolve, field, frozen
from attrs.validators import ge
from torch import Tensor

from coldpress.plugin import (
    Attached,
    CheckpointError,
    Format,
    Parts,
    Quantized,
    Scheme,
    SchemeError,
    SchemeLookup,
    State,
    Stored,
    Weights,
    with_float16_scales,
)
from coldpress_gguf.architecture import Names, architecture_of
from coldpress_gguf.mix import label_of, mixed
from coldpress_gguf.reading import FILE, GgufTensors
from coldpress_gguf.types import check_experts, obstacle, type_of
from coldpress_gguf.vocabulary import vocabulary_of
from coldpress_gguf.writing import BLOCKS, FACTOR, Header, entries_of, tied, write_file

log = logging.getLogger(__name__)


@frozen(kw_only=True)
class GgufFormat(Format):
    """One file with weights, configuration and tokenizer; codes and scales are those of the run, bit for bit.

    Attributes:
        pre_tokenizer: what llama.cpp calls the way in which the tokenizer cuts text; left out, it is found by a hash.
        split_max_size: bytes of a file, at most; 0 writes one file.
    """

    fuses_layers: ClassVar[bool] = False

    pre_tokenizer: str | None = None
    split_max_size: int = field(default=0, validator=ge(0))

    def complete(self, schemes: Mapping[str, Scheme], shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, Scheme]:
        """Scales in float16; and of a mix, such as Q4_K_M, the type of each layer.

        Raises:
            SchemeError: experts of a block are of different types.
        """
        found = {name: with_float16_scales(scheme) for name, scheme in mixed(schemes, shapes).items()}
        check_experts(found)
        return found

    def check(self, scheme: Scheme, name: str, shape: tuple[int, int]) -> None:
        """Refuse what no type of ggml holds as it is."""
        reason = obstacle(scheme, shape)
        if reason:
            raise SchemeError(f"{name}, {shape[0]} x {shape[1]}, cannot be written as gguf: {reason}")

    def check_model(self, state: State, names: Sequence[str]) -> None:
        """Refuse an architecture or tokenizer that llama.cpp does not have, and experts that are not of one type.

        Raises:
            ModelError: says what it lacks.
            SchemeError: some experts of a block are quantized, and others are not.
        """
        model: Any = state.model
        schemes = {**state.schemes, **{name: planned.scheme for name, planned in state.plan.items()}}
        layers = (name.removesuffix(".weight") for name, _ in model.named_parameters() if name.endswith(".weight"))
        check_experts({name: schemes.get(name) for name in layers})
        places = Names(model.config, architecture_of(model.config))
        for name in names:
            places.tensor(name)
        if state.tokenizer is not None:
            vocabulary_of(state.tokenizer, model.config.vocab_size, self.pre_tokenizer)

    def tensors(self, quantized: Quantized) -> dict[str, Tensor]:
        """`blocks`, rows of bytes, and the global scale of NVFP4."""
        try:
            found = {BLOCKS: type_of(quantized.scheme).pack(quantized)}
        except ValueError as error:
            raise CheckpointError(f"a layer cannot be written as gguf: {error}") from error
        return found if quantized.global_scale is None else {**found, FACTOR: quantized.global_scale.float()}

    def config(
        self, schemes: Mapping[str, Scheme], ignore: Sequence[str], attachments: Sequence[Attached] = ()
    ) -> dict[str, Any] | None:
        """The schemes of layers, for our own reader: llama.cpp reads the file alone."""
        kinds: dict[Scheme, list[str]] = {}
        for name, scheme in schemes.items():
            kinds.setdefault(evolve(scheme, targets=()), []).append(name)
        groups = [evolve(kind, targets=tuple(names)).to_dict() for kind, names in kinds.items()]
        return {"quant_method": "gguf", "file": FILE, "groups": groups}

    def read(self, config: Mapping[str, Any]) -> SchemeLookup:
        """Read what `config` returned."""
        found = _schemes(config)
        return lambda name, class_names: found.get(name)

    def restore(self, tensors: Mapping[str, Tensor], scheme: Scheme) -> Quantized:
        """Codes and scales of one layer."""
        if BLOCKS not in tensors:
            raise CheckpointError(f"a quantized layer lacks its blocks; it has {', '.join(tensors) or 'no tensors'}")
        kind, blocks = type_of(scheme), tensors[BLOCKS]
        try:
            if blocks.ndim != 2 or blocks.dtype != torch.uint8:
                raise ValueError(f"blocks are rows of bytes, not {blocks.dtype} {tuple(blocks.shape)}")
            kind.width(blocks.shape[1])
            found = kind.unpack(blocks, scheme)
        except ValueError as error:
            raise CheckpointError(f"a layer of type {kind.name} cannot be read: {error}") from error
        return found if FACTOR not in tensors else evolve(found, global_scale=tensors[FACTOR].reshape(1))

    def count_weights(self, stored: Mapping[str, Stored], scheme: Scheme) -> Mapping[str, int]:
        """The codes of the blocks."""
        if BLOCKS not in stored or scheme.weights is None:
            return {}
        rows, nbytes = stored[BLOCKS].shape
        counts = {suffix: 0 for suffix in (FACTOR,) if suffix in stored}
        return {BLOCKS: rows * type_of(scheme).width(nbytes), **counts}

    def publish(self, parts: Parts, folder: Path, state: State) -> None:
        """Write `model.gguf`, or its shards."""
        model: Any = state.model
        tokenizer = state.tokenizer
        if tokenizer is None:
            log.warning("%s has no tokenizer, so llama.cpp takes numbers of tokens only", folder / FILE)
        vocabulary = (
            None if tokenizer is None else vocabulary_of(tokenizer, model.config.vocab_size, self.pre_tokenizer)
        )
        config = _quantization(folder)
        kinds = {name: type_of(scheme).name for name, scheme in _schemes(config).items()}
        entries = entries_of(parts, model.config, architecture_of(model.config), kinds)
        header = Header(model.config, vocabulary, label_of(kinds.values(), model.dtype))
        write_file(folder / FILE, tied(entries, parts), parts, header, split_max_size=self.split_max_size)

    def open(self, folder: Path) -> Weights | None:
        """What lies in `model.gguf`, or its shards."""
        return GgufTensors(folder)


def _schemes(config: Mapping[str, Any]) -> dict[str, Scheme]:
    """Layer name to scheme.

    Raises:
        CheckpointError: `groups` is missing or not understood.
    """
    try:
        groups = [Scheme.from_dict(group) for group in config["groups"]]
    except (KeyError, TypeError, SchemeError) as error:
        raise CheckpointError(f"quantization_config: groups cannot be read: {error}") from error
    return {name: group for group in groups for name in group.targets}


def _quantization(folder: Path) -> Mapping[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = config["quantization_config"]
    return found
