"""Attachment: what belongs to a module, acts on its forward, and goes with the checkpoint.

    @frozen(kw_only=True)
    class Clamped(Attachment):                    # coldpress.attachments: clamped = "package:Clamped"
        kind: ClassVar[str] = "clamped"
        most: float

        def outputs(self, module, y): return y.clamp(-self.most, self.most)

before the run     Modifier.attachments says which there will be; what the format cannot write is refused
in a hook          state.attach puts one on a module, in place of an earlier one of the same kind
with the stage     the journal keeps its record, the checkpoint its buffers; an interrupted run recalls both
in the end         Format.config writes it down, and Format.attachments reads it back

The model has its attachments wherever it goes: to another device, into a copy, a pickle or a training loop.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from attrs import field, fields, frozen
from torch import Tensor, nn

from coldpress import registry
from coldpress.attention import AttentionStates, tap_attention, untap_attention
from coldpress.errors import BrokenPluginError, ModelError
from coldpress.stage import class_names, oriented

_POINTS = ("inputs", "weight", "outputs", "attention")
_HELD = "coldpress_attachments"  # attribute of a module: kind -> attachment, in the order in which they act


@frozen(kw_only=True)
class Attachment:
    """Base of attachments, plugins of the kind `attachments`: settings, and what is done with them.

    A subclass overrides one of `inputs`, `weight`, `outputs` and `attention`.
    Its fields are settings that JSON can hold, and small tensors; a class with tensors is `eq=False`.
    Large tensors are buffers of the module, whose names `buffers` lists: they are in the checkpoint.
    Attachments of a module act in the order in which they were attached.
    """

    kind: ClassVar[str] = ""
    """The name of its entry point."""

    of_scheme: ClassVar[bool] = False
    """It is part of the scheme of its layer, by which a format writes and reads it, and acts after all others."""

    shared: ClassVar[bool] = False
    """Its buffers, which nothing changes, are those of many modules; `Format.attachment_tensors` writes them, once."""

    def inputs(self, module: nn.Module, x: Tensor) -> Tensor:
        """The inputs, [..., I], that a layer computes with, in place of those that it is called with."""
        return x

    def weight(self, module: nn.Module, w: Tensor) -> Tensor:
        """The weight, [O, I], that a layer computes with, in place of its own, to which gradients flow through it."""
        return w

    def outputs(self, module: nn.Module, y: Tensor) -> Tensor:
        """The outputs of a module, in place of its own; of several the first tensor."""
        return y

    def attention(self, module: nn.Module, states: AttentionStates) -> AttentionStates:
        """Keys, values and queries that an attention computes with, in place of those that it is called with."""
        return states

    def buffers(self) -> tuple[str, ...]:
        """Names of the module's buffers that belong to it."""
        return ()

    def buffer_shapes(self, module: nn.Module) -> Mapping[str, tuple[int, ...]] | None:
        """The shapes of its buffers, before it is attached; None where only data tell them."""
        return None if self.buffers() else {}

    def describe(self, buffer: str) -> str:
        """What one of its buffers is, in the words of a report."""
        return f"{self.kind}: {buffer}"

    def to_record(self) -> dict[str, Any]:
        """Its fields as JSON keeps them; tensors exactly."""
        return {one.name: _plain(getattr(self, one.name)) for one in fields(type(self))}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Attachment":
        """The inverse of `to_record`; a field that is neither plain nor a tensor needs a converter."""
        return cls(**{name: _tensor(value) if _is_tensor(value) else value for name, value in record.items()})


@frozen(eq=False)
class Attached:
    """An attachment where it is, as a format is told of it.

    Attributes:
        name: of the module, from the root of the model, as the checkpoint has it.
        class_names: of the module, in the order of its MRO.
        attachment: the attachment.
        shapes: of the module's own parameters, by their names in it.
        buffers: those of the attachment that the module has, with data.
    """

    name: str
    class_names: tuple[str, ...]
    attachment: Attachment
    shapes: Mapping[str, tuple[int, ...]] = field(factory=dict)
    buffers: Mapping[str, Tensor] = field(factory=dict, repr=False)

    @classmethod
    def on(cls, name: str, module: nn.Module, attachment: Attachment) -> "Attached":
        """The attachment of a module of this name."""
        shapes = {part: tuple(p.shape) for part, p in module._parameters.items() if p is not None}
        own = {n: x for n, x in module.named_buffers(recurse=False) if n in attachment.buffers() and not x.is_meta}
        return cls(name, class_names(module), attachment, shapes, own)


def attach(module: nn.Module, attachment: Attachment, buffers: Mapping[str, Tensor] | None = None) -> None:
    """Put an attachment on a module, in place of one of the same kind.

    Args:
        module: a layer for what acts on inputs; one whose attention transformers dispatches for what acts there.
        attachment: the attachment.
        buffers: the tensors that it names.

    Raises:
        BrokenPluginError: it has no kind, acts on nothing, or names other buffers.
        ModelError: attention of the module cannot be tapped.
    """
    buffers = buffers or {}
    own = type(attachment).__name__
    if not attachment.kind or not any(_acts(attachment, point) for point in _POINTS):
        raise BrokenPluginError(f"{own} must have a kind, and override one of {', '.join(_POINTS)}")
    if set(buffers) != set(attachment.buffers()):
        raise BrokenPluginError(f"{own} names the buffers {attachment.buffers()} and is attached with {tuple(buffers)}")
    detach(module, attachment.kind)
    for name in attachment.buffers():
        module.register_buffer(name, buffers[name], persistent=not attachment.shared)
    _hold(module, {**_held(module), attachment.kind: attachment})


def detach(module: nn.Module, kind: str) -> None:
    """Take the attachment of a kind, if there is one, and its buffers off a module."""
    held = dict(_held(module))
    found = held.pop(kind, None)
    if found is not None:
        for name in found.buffers():
            delattr(module, name)
        _hold(module, held)


def attachments_on(module: nn.Module) -> tuple[Attachment, ...]:
    """The attachments of a module, in the order in which they act."""
    return tuple(_held(module).values())


def every_attachment(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module, Attachment]]:
    """Name, module and attachment, of all attachments of some modules."""
    for name, module in modules:
        for attachment in attachments_on(module):
            yield name, module, attachment


def copy_attachments(model: nn.Module, other: nn.Module) -> None:
    """Put the attachments of a model on another one with the same modules."""
    for name, module, one in every_attachment(model.named_modules()):
        own = {part: getattr(module, part) for part in one.buffers()}
        attach(other.get_submodule(name), one, own if one.shared else {part: x.clone() for part, x in own.items()})


@contextmanager
def attachments_as(found: Mapping[nn.Module, Sequence[Attachment]]) -> Iterator[None]:
    """Inside, each of these modules has these attachments and no others; buffers stay as they are."""
    current = {module: _held(module) for module in found}
    changed = [module for module, held in current.items() if [*map(id, held.values())] != [*map(id, found[module])]]
    for module in changed:
        _hold(module, {one.kind: one for one in found[module]})
    try:
        yield
    finally:
        for module in changed:
            _hold(module, current[module])


def attachment_class(kind: str) -> type[Attachment]:
    """The class of a kind, which is installed.

    Raises:
        PluginError: no installed distribution offers the kind, or what is offered is no attachment of this kind.
    """
    found = registry.find("attachments", kind)
    if not (isinstance(found, type) and issubclass(found, Attachment) and found.kind == kind):
        raise BrokenPluginError(f"the attachment {kind!r} is {found!r}, not an Attachment of this kind")
    return found


def is_attachment_hook(hook: Any) -> bool:
    """Whether a forward hook of a module is that by which its attachments act."""
    return hook in (_on_inputs, _on_weight, _after_weight, _on_outputs)


def _held(module: nn.Module) -> Mapping[str, Attachment]:
    found: Mapping[str, Attachment] = vars(module).get(_HELD, {})
    return found


def _hold(module: nn.Module, held: Mapping[str, Attachment]) -> None:
    """Make these the attachments of a module, and act where one of them does."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, one in hooks.items() if is_attachment_hook(one)]:
            del hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)
            module._forward_hooks_always_called.pop(key, None)
    untap_attention(module, _on_attention)
    vars(module).pop(_HELD, None)
    if any(_acts(one, "attention") for one in held.values()):
        tap_attention(module, _on_attention, first=True)
    if any(_acts(one, "inputs") for one in held.values()):
        module.register_forward_pre_hook(_on_inputs, with_kwargs=True)
    if any(_acts(one, "weight") for one in held.values()):
        module.register_forward_pre_hook(_on_weight)
        module.register_forward_hook(_after_weight, always_call=True)
    if any(_acts(one, "outputs") for one in held.values()):
        module.register_forward_hook(_on_outputs)
    if held:
        vars(module)[_HELD] = dict(sorted(held.items(), key=lambda item: item[1].of_scheme))


def _acts(attachment: Attachment, point: str) -> bool:
    return getattr(type(attachment), point) is not getattr(Attachment, point)


def _on_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    if args:
        return _changed(args, module, _inputs), kwargs
    first = next((name for name, value in kwargs.items() if isinstance(value, Tensor)), None)
    return args, kwargs if first is None else {**kwargs, first: _inputs(module, kwargs[first])}


def _on_weight(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Let the forward find another weight; the parameter stays what it is, under its name."""
    classes = class_names(module)
    weight = oriented(module._parameters["weight"], classes)  # type: ignore[arg-type]
    for attachment in attachments_on(module):
        weight = attachment.weight(module, weight)
    vars(module)["weight"] = oriented(weight, classes)  # found before what __getattr__ finds in _parameters


def _after_weight(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    vars(module).pop("weight", None)


def _on_outputs(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    return _outputs(module, output) if isinstance(output, Tensor) else _changed(output, module, _outputs)


def _on_attention(module: nn.Module, states: AttentionStates) -> AttentionStates:
    for attachment in attachments_on(module):
        states = attachment.attention(module, states)
    return states


def _inputs(module: nn.Module, x: Tensor) -> Tensor:
    for attachment in attachments_on(module):
        x = attachment.inputs(module, x)
    return x


def _outputs(module: nn.Module, y: Tensor) -> Tensor:
    for attachment in attachments_on(module):
        y = attachment.outputs(module, y)
    return y


def _changed(values: Any, module: nn.Module, change: Callable[[nn.Module, Tensor], Tensor]) -> Any:
    """A tuple or list whose first tensor is changed."""
    found = values if isinstance(values, tuple | list) else ()
    first = next((i for i, value in enumerate(found) if isinstance(value, Tensor)), None)
    if first is None:
        raise ModelError(f"a {type(module).__name__} has an attachment, and {type(values).__name__} holds no tensor")
    parts = [change(module, value) if i == first else value for i, value in enumerate(values)]
    return parts if isinstance(values, list) else tuple(parts)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"dtype": str(value.dtype).removeprefix("torch."), "values": value.double().tolist()}
    return value.to_dict() if hasattr(value, "to_dict") else value


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() == {"dtype", "values"}


def _tensor(record: Mapping[str, Any]) -> Tensor:
    return torch.tensor(record["values"], dtype=torch.float64).to(getattr(torch, record["dtype"]))
