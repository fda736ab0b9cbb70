"""Originals: the parameters of a stage as they were before it was compressed."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from attrs import define, field
from torch import Tensor, nn

from coldpress.attachment import Attachment, attachments_as, attachments_on
from coldpress.stage import Layer, Stage, oriented


@define(eq=False)
class Originals:
    """Parameters of a stage before it was compressed; equivalent transformations act on them too.

    Attributes:
        parameters: name to a parameter of the stage and what it was.
        attachments: module of the stage to what was attached to it; by module, in the order of the stage.
        compressed: names of the layers that were compressed already when this was kept.
        active: whether the stage has these weights now, inside of `swapped`.
        transformed: how many transformations were applied to them.
    """

    parameters: dict[str, tuple[nn.Parameter, Tensor]]
    attachments: dict[nn.Module, tuple[Attachment, ...]] = field(factory=dict)
    compressed: frozenset[str] = frozenset()
    active: bool = False
    transformed: int = 0

    @classmethod
    def of(cls, stage: Stage, names: Collection[str] | None, *, compressed: Collection[str]) -> "Originals":
        """Copies of the parameters of a stage as it is now.

        Args:
            stage: whose.
            names: of the modules whose parameters are kept; None for all of the stage.
            compressed: names of all layers that are compressed already.
        """
        kept = {
            f"{name}.{part}" if name else part: (parameter, parameter.detach().clone())
            for name, module in stage.modules.items()
            if names is None or name in names
            for part, parameter in module.named_parameters(recurse=False)
        }
        attachments = {module: attachments_on(module) for module in stage.modules.values()}
        return cls(kept, attachments, frozenset(compressed))

    def weight(self, layer: Layer) -> Tensor | None:
        """What the layer's weight was, [O, I]; None when it was not kept."""
        found = self.parameters.get(f"{layer.name}.weight")
        return None if found is None else oriented(found[1], layer.classes)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the stage has these parameters, and none of what was attached later."""
        current = {name: parameter.data for name, (parameter, _) in self.parameters.items()}
        for parameter, before in self.parameters.values():
            parameter.data = before
        self.active = True
        try:
            with attachments_as(self.attachments):
                yield
        finally:
            self.active = False
            for name, (parameter, _) in self.parameters.items():
                parameter.data = current[name]

    def attach(self, module: nn.Module, attachment: Attachment) -> None:
        """An equivalent transformation attached this, in place of one of its kind."""
        rest = (one for one in self.attachments.get(module, ()) if one.kind != attachment.kind)
        self.attachments[module] = (*rest, attachment)

    def transform(self, apply: Callable[[], None]) -> None:
        """Do to them what `apply` does, in place, to the parameters that the stage has."""
        with self.swapped():
            apply()
        self.transformed += 1
