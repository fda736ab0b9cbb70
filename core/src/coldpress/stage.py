"""What hooks are handed: a stage of the model, its layers, and one batch of their inputs."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import field, frozen
from torch import Tensor, nn


def class_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the module's classes, most special first; what a target may call it.

    A `Conv1D` of transformers is a linear layer that stores its weight transposed, so it answers to `Linear` too.
    """
    names = tuple(kind.__name__ for kind in type(module).__mro__)
    return (*names, "Linear") if "Conv1D" in names else names


def matches(pattern: str, name: str, classes: Sequence[str]) -> bool:
    """Whether a target or ignore pattern means this module.

    Args:
        pattern: an exact name, `re:` and a regular expression that is matched from the start, or a class name.
        name: of the module, from the root of the model.
        classes: what `class_names` says of it.
    """
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return pattern == name or pattern in classes


@frozen(eq=False)
class Layer:
    """A module with a matrix of weights: linear, `Conv1D` or embedding.

    Attributes:
        name: from the root of the model.
        module: the module itself.
        classes: the class names that a target may use.
    """

    name: str
    module: nn.Module
    classes: tuple[str, ...]

    @property
    def weight(self) -> Tensor:
        """The weights, [O, I]; a view, so that `layer.weight.copy_(...)` changes the module."""
        weight: Tensor = self.module.weight.detach()  # type: ignore[operator]
        return weight.t() if "Conv1D" in self.classes else weight

    def matches(self, patterns: Iterable[str]) -> bool:
        """Whether any of the patterns means this layer."""
        return any(matches(pattern, self.name, self.classes) for pattern in patterns)


@frozen(eq=False)
class Stage:
    """Part of a model whose layers are compressed together.

    Attributes:
        name: of the module that it is, or `prologue`, `epilogue`, `model`.
        index: of the stage in the run, from 0.
        modules: every module of the stage with its name from the root, in model order.
    """

    name: str
    index: int
    modules: Mapping[str, nn.Module]
    every_layer: tuple[Layer, ...] = field(init=False)

    @every_layer.default
    def _find_layers(self) -> tuple[Layer, ...]:
        return tuple(find_layers(self.modules.items()))

    def layers(self, targets: Iterable[str], ignore: Iterable[str] = ()) -> list[Layer]:
        """The layers that `targets` mean and `ignore` does not, in model order."""
        targets, ignore = tuple(targets), tuple(ignore)
        return [layer for layer in self.every_layer if layer.matches(targets) and not layer.matches(ignore)]


@frozen(eq=False)
class Batch:
    """One batch of calibration data, as the layers of a stage saw it.

    Attributes:
        index: of the batch in the sweep, from 0.
        inputs: layer name to what the layer was called with, [T, I]; tokens of all rows, padding removed.
    """

    index: int
    inputs: Mapping[str, Tensor]


def find_layers(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[Layer]:
    """The layers among named modules: linear layers and embeddings, whatever their class is called."""
    for name, module in modules:
        classes = class_names(module)
        weight = getattr(module, "weight", None)
        if ("Linear" in classes or "Embedding" in classes) and weight is not None and weight.ndim == 2:
            yield Layer(name, module, classes)
