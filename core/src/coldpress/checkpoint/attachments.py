"""Attachments of modules in a journal and in the configuration of a checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from coldpress.attachment import Attached, attach, attachment_class, every_attachment
from coldpress.checkpoint.names import CheckpointNames
from coldpress.errors import SchemeError


def record_attachments(modules: Mapping[str, nn.Module]) -> list[dict[str, Any]]:
    """What JSON keeps of the attachments of some modules; their buffers are kept among the tensors."""
    return [
        {
            "module": name,
            "kind": attachment.kind,
            "settings": attachment.to_record(),
            "buffers": {part: _shape(getattr(module, part)) for part in attachment.buffers()},
        }
        for name, module, attachment in every_attachment(modules.items())
    ]


def recall_attachments(records: list[Mapping[str, Any]], modules: Mapping[str, nn.Module], model: nn.Module) -> None:
    """The inverse of `record_attachments`, with buffers that wait for their values.

    Raises:
        PluginError: the attachment is no longer installed.
    """
    device = next((x.device for x in (*model.parameters(), *model.buffers()) if not x.is_meta), torch.device("cpu"))
    for record in records:
        buffers = {
            name: torch.zeros(shape, dtype=getattr(torch, dtype), device=device)
            for name, (dtype, shape) in record["buffers"].items()
        }
        attachment = attachment_class(record["kind"]).from_record(record["settings"])
        attach(modules[record["module"]], attachment, buffers)


def attachments_of(model: nn.Module, names: CheckpointNames) -> list[Attached]:
    """The attachments of a model that are not part of a scheme, with the names that modules have on disk."""
    return [
        Attached.on(names.layer(name), module, attachment)
        for name, module, attachment in every_attachment(model.named_modules())
        if not attachment.of_scheme
    ]


def refuse_attachments(model: nn.Module) -> None:
    """Refuse to write a model as if it had no attachments.

    Raises:
        SchemeError: it has some that are not part of a scheme.
    """
    found = attachments_of(model, CheckpointNames())
    if found:
        raise SchemeError(
            f"{found[0].name} has the attachment {found[0].attachment.kind!r}, which dense weights cannot tell; "
            "save it compressed, or copy the folder that it came from"
        )


def _shape(tensor: Tensor) -> tuple[str, list[int]]:
    return str(tensor.dtype).removeprefix("torch."), list(tensor.shape)
