"""Attachments of modules in a journal and in the configuration of a checkpoint."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from coldpress.attachment import Attached, attach, attachment_class, every_attachment
from coldpress.checkpoint.names import CheckpointNames
from coldpress.errors import SchemeError


class SharedBuffers:
    """The buffers of attachments that many modules have in common, each once, under the name of a file beside stages.

    Args:
        read: of such a file, what it holds.
    """

    def __init__(self, read: Callable[[str], Mapping[str, Tensor]]) -> None:
        self._read = read
        self._known: dict[str, dict[str, Tensor]] = {}

    def name(self, buffers: Mapping[str, Tensor]) -> str | None:
        """What these are kept under; None where they are not yet."""
        return next((name for name, known in self._known.items() if _same(known, buffers)), None)

    def added(self, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Those of some modules that are not kept yet, with the names that they get."""
        for _, module, attachment in every_attachment(modules.items()):
            buffers = {part: getattr(module, part) for part in attachment.buffers() if attachment.shared}
            if buffers and self.name(buffers) is None:
                name = f"shared-{len(self._known)}"
                self._known[name] = buffers
                yield name, buffers

    def recalled(self, name: str, device: torch.device) -> dict[str, Tensor]:
        """What is kept under a name, the same tensors whenever it is asked for."""
        if name not in self._known:
            self._known[name] = {part: tensor.to(device) for part, tensor in self._read(name).items()}
        return self._known[name]


def record_attachments(modules: Mapping[str, nn.Module], shared: SharedBuffers) -> list[dict[str, Any]]:
    """What JSON keeps of the attachments of some modules; their buffers are kept among the tensors.

    Args:
        modules: by name.
        shared: that knows all buffers that are shared.
    """
    found = []
    for name, module, attachment in every_attachment(modules.items()):
        record: dict[str, Any] = {"module": name, "kind": attachment.kind, "settings": attachment.to_record()}
        buffers = {part: getattr(module, part) for part in attachment.buffers()}
        if attachment.shared and buffers:
            found.append({**record, "buffers": {}, "shared": shared.name(buffers)})
        else:
            found.append({**record, "buffers": {part: _shape(tensor) for part, tensor in buffers.items()}})
    return found


def recall_attachments(
    records: list[Mapping[str, Any]], modules: Mapping[str, nn.Module], model: nn.Module, shared: SharedBuffers
) -> None:
    """The inverse of `record_attachments`, with buffers that wait for their values, but for those that are shared.

    Raises:
        PluginError: the attachment is no longer installed.
    """
    device = next((x.device for x in (*model.parameters(), *model.buffers()) if not x.is_meta), torch.device("cpu"))
    for record in records:
        buffers = {
            name: torch.zeros(shape, dtype=getattr(torch, dtype), device=device)
            for name, (dtype, shape) in record["buffers"].items()
        }
        if "shared" in record:
            buffers = shared.recalled(record["shared"], device)
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


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether these are the same buffers, by their names and values."""
    return one.keys() == other.keys() and all(
        x is other[part] or (_shape(x) == _shape(other[part]) and torch.equal(x, other[part].to(x.device)))
        for part, x in one.items()
    )


def _shape(tensor: Tensor) -> tuple[str, list[int]]:
    return str(tensor.dtype).removeprefix("torch."), list(tensor.shape)
