"""What a checkpoint format is: how a compressed layer becomes named tensors and a line of `config.json`, and back.

    class MyFormat(Format):                     # coldpress.formats: my-format = "package:MyFormat"
        def complete(self, schemes, shapes): ...         before any work: what schemes leave open
        def check(self, scheme, name, shape): ...        before any work: can it be written?
        def check_model(self, state, names): ...         before any work: has it a place for the whole model?
        def tensors(self, quantized): ...                {"weight_packed": ..., "weight_scale": ...}
        def config(self, schemes, ignore, attachments)   config.json["quantization_config"]
        def config_for(self, config, model, schemes): .. the same for a model of this class
        def read(self, config): ...                      config -> (layer -> scheme)
        def restore(self, tensors, scheme): ...          the tensors of one layer -> Quantized
        def count_weights(self, stored, scheme): ...     how many weights they stand for
        def publish(self, parts, folder, state): ...     another container than safetensors files
        def open(self, folder): ...                      and its tensors again

        def check_attachment(self, attached): ...        before any work: can it be told?  by default nothing can
        def attachments(self, config): ...               config -> (module -> attachments)
        def attachment_tensors(self, attachments): ...   what several of them share, on disk
        def attachment_buffers(self, attached, weights)  and back

The name of the entry point is the `quant_method` of its configuration, so that a checkpoint finds its reader.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from attrs import frozen
from torch import Tensor

from coldpress.attachment import Attached, Attachment
from coldpress.errors import SchemeError
from coldpress.quantized import Quantized
from coldpress.schemes import Scheme
from coldpress.source import Weights
from coldpress.state import State

REST = "rest"
"""What `Parts.stages` calls tensors that were written after the last stage, or without stages."""


class SchemeLookup(Protocol):
    """What a configuration says of a layer."""

    def __call__(self, name: str, class_names: Sequence[str]) -> Scheme | None:
        """The scheme of the layer, `format` filled in; None when it is not quantized.

        Args:
            name: of the layer, from the root of the model.
            class_names: names of the classes in its module's MRO; `Conv1D` also answers to `Linear`.
        """


@frozen
class Stored:
    """A tensor of a checkpoint, as its header has it.

    Attributes:
        dtype: as stored.
        shape: as stored.
        read: reads it.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def nbytes(self) -> int:
        """The bytes that it takes."""
        return prod(self.shape) * self.dtype.itemsize


class AttachmentLookup(Protocol):
    """What a configuration says of the attachments of a module."""

    def __call__(self, name: str, class_names: Sequence[str], tensors: Collection[str]) -> Sequence[Attachment]:
        """The attachments of the module in the order in which they act; none for most modules.

        Args:
            name: of the module, from the root of the model, as the checkpoint has it.
            class_names: names of the classes in the module's MRO.
            tensors: what the checkpoint has of the module itself, `weight` and `bias` of a layer.

        Raises:
            CheckpointError: a tensor that belongs to an attachment is missing.
        """


class Parts(Weights):
    """The tensors of a finished run, as `Format.tensors` made them, on disk and under the names that they have there.

    Attributes:
        stages: name of each stage to its tensors, in the order of the run; what belongs to no stage is under `REST`.
    """

    stages: Mapping[str, Sequence[str]]

    @abstractmethod
    def consolidate(self, folder: Path) -> None:
        """Write all of them as `model.safetensors`, or as shards and their index; bytes are copied or linked."""


@frozen(kw_only=True)
class Format(ABC):
    """A way of writing compressed layers; a plugin of the kind `formats`.

    Its attrs fields are its settings.
    Weights and codes are [O, I], whatever way round the module keeps them.
    """

    fuses_layers: ClassVar[bool] = False
    """Its readers make one matrix of layers side by side that read the same input, so these must have one scheme."""

    def complete(self, schemes: Mapping[str, Scheme], shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, Scheme]:
        """Decide what schemes leave open and codes depend on, such as the dtype of scales; nothing, unless overridden.

        Called before any work, and again where a modifier decides schemes after its measuring pass: what is complete
        stays as it is.

        Args:
            schemes: layer name to scheme, in model order, of all layers that will be quantized.
            shapes: of their weights, (O, I).

        Returns:
            The same names, each with the scheme that `check` sees and codes are chosen for.
        """
        return schemes

    @abstractmethod
    def check(self, scheme: Scheme, name: str, shape: tuple[int, int]) -> None:
        """Refuse what cannot be written, before anything is computed.

        Args:
            scheme: of the layer.
            name: of the layer, for the message.
            shape: of its weight, (O, I).

        Raises:
            SchemeError: says which layer, why, and what would do.
        """

    def check_model(self, state: State, names: Sequence[str]) -> None:  # noqa: B027 - what is not refused is taken
        """Refuse a model or tokenizer that the container has no place for, before any work; by default none.

        Args:
            state: of the run.
            names: what the tensors of the dense model are called on disk.

        Raises:
            ModelError: says what it lacks.
        """

    @abstractmethod
    def tensors(self, quantized: Quantized) -> dict[str, Tensor]:
        """What is written for a layer in place of its `weight`.

        Returns:
            Suffix to tensor; `weight_scale` of layer `lm_head` is written as `lm_head.weight_scale`.
        """

    @abstractmethod
    def config(
        self, schemes: Mapping[str, Scheme], ignore: Sequence[str], attachments: Sequence[Attached] = ()
    ) -> dict[str, Any] | None:
        """What a reader must know: `quantization_config` in `config.json`.

        Args:
            schemes: layer name to scheme, in model order.
            ignore: every other layer that a target could mean, in model order.
            attachments: in model order, where there are any: those that `check_attachment` takes, and not what is part
                of a scheme.

        Returns:
            A table that JSON can hold, with `quant_method`; None when the checkpoint is that of a plain model.
        """

    def config_for(
        self, config: dict[str, Any], model: Callable[[], Any], schemes: Mapping[str, Scheme]
    ) -> dict[str, Any]:
        """What `config` returned, and what readers must know of the model's class; by default nothing more.

        Args:
            config: that table.
            model: returns the model, whose weights may be on the meta device; None where its class is not known.
            schemes: layer name to scheme.
        """
        return config

    @abstractmethod
    def read(self, config: Mapping[str, Any]) -> SchemeLookup:
        """Read what `config` returned, or what other tools wrote under the same `quant_method`.

        Raises:
            CheckpointError: it contradicts itself, or says what this format cannot read.
        """

    def check_attachment(self, attached: Attached) -> None:
        """Refuse an attachment that the configuration cannot tell, before anything is computed; by default any.

        Args:
            attached: as it will be, without its buffers.

        Raises:
            SchemeError: says which, why, and what would do.
        """
        raise SchemeError(
            f"{attached.name} cannot have the attachment {attached.attachment.kind!r} in this format, "
            f"{type(self).__name__}: choose a format that can tell it"
        )

    def attachments(self, config: Mapping[str, Any]) -> AttachmentLookup:
        """Read what `config` returned of attachments, or other tools wrote of what is one here; by default nothing.

        Raises:
            CheckpointError: it contradicts itself, or says what this format cannot read.
        """
        return lambda name, class_names, tensors: ()

    def attachment_tensors(self, attachments: Sequence[Attached]) -> dict[str, Tensor]:
        """What is written for attachments beside buffers of their own, by its full name on disk; by default nothing."""
        return {}

    def attachment_buffers(self, attached: Attached, weights: Weights) -> Mapping[str, Tensor] | None:
        """The buffers of an attachment that `attachments` has found; None where they are under its module's name.

        Raises:
            CheckpointError: one is missing.
        """
        return None

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor], scheme: Scheme) -> Quantized:
        """The inverse of `tensors`.

        Args:
            tensors: suffix to tensor; suffixes that are not the format's, such as `bias`, are left alone.
            scheme: what `read` says of the layer.

        Raises:
            CheckpointError: a tensor is missing or does not have the shape that the scheme implies.
        """

    def count_weights(self, stored: Mapping[str, Stored], scheme: Scheme) -> Mapping[str, int]:
        """How many weights the tensors of a quantized layer stand for: what `coldpress inspect` counts.

        Unless overridden, the report beside a checkpoint says how many weights the layer has.

        Args:
            stored: suffix to tensor, of a layer as it lies in a checkpoint.
            scheme: what `read` says of the layer.

        Returns:
            Suffix to number, 0 for scales and whatever else is no code; without tensors such as `bias`, which are no
            part of the quantized weight.  Empty where the tensors are not those of a quantized layer.
        """
        return {}

    def shape(self, stored: Mapping[str, Stored], scheme: Scheme) -> tuple[int, int] | None:
        """The shape of the weight of a quantized layer, (O, I), without reading codes; None where `restore` tells."""
        return None

    def publish(self, parts: Parts, folder: Path, state: State) -> None:
        """Write the tensors of all stages into the folder of the checkpoint; safetensors files, unless overridden.

        Called once all stages are durable; after an interruption it is called again, on a folder without tensors.
        Configuration, tokenizer and all other files are in the folder already; core makes everything durable.

        Args:
            parts: the tensors; each must be read, or all of them consolidated.
            folder: where.
            state: of the finished run; weights may be on the meta device.
        """
        parts.consolidate(folder)

    def open(self, folder: Path) -> Weights | None:
        """The tensors that `publish` wrote, as they were in its parts; None for safetensors files, which core reads.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        return None
