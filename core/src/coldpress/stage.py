"""What hooks are handed: a stage of the model, its layers, a batch of their inputs, and a call of a module."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import regex
from attrs import field, frozen
from torch import Tensor, nn

from coldpress.errors import TargetError

_SECONDS = 1.0  # that a pattern may take for one name
_MOST_REPEATS = 100_000  # of a part of a pattern: all its counts multiplied, as if each were within the one before
_RECURSION = regex.compile(r"(?<!\\)(?:\\\\)*\(\?(?:R|[+-]?\d+|&\w+|P>\w+)\)")  # which takes all memory, or all time


def class_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the module's classes, most special first; what a target may call it.

    A `Conv1D` of transformers is a linear layer that stores its weight transposed, so it answers to `Linear` too.
    """
    names = tuple(kind.__name__ for kind in type(module).__mro__)
    return (*names, "Linear") if "Conv1D" in names else names


def matches_name(pattern: str, name: str) -> bool:
    """Whether a pattern, an exact name or `re:` and an expression that is matched from the start, means this name."""
    if not pattern.startswith("re:"):
        return pattern == name
    try:
        return _compiled(pattern).match(name, timeout=_SECONDS) is not None
    except TimeoutError:
        raise TargetError(
            f"{pattern!r} is tried on {name[:80]!r} for more than {_SECONDS:g} s: write it with fewer repetitions"
        ) from None
    except MemoryError:
        raise TargetError(f"{pattern!r} takes all memory on {name[:80]!r}: write it simpler") from None


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    counts = (int(max(pair, key=len)[:9] or 1) for pair in regex.findall(r"\{(\d*),?(\d*)\}", pattern))
    if prod(max(1, count) for count in counts) > _MOST_REPEATS:  # each takes memory when it is compiled
        raise TargetError(f"{pattern!r} repeats its parts more than {_MOST_REPEATS} times: write it with fewer")
    if _RECURSION.search(pattern):
        raise TargetError(f"{pattern!r} calls itself or a part of itself: write it without recursion")
    try:
        return regex.compile(pattern[3:])
    except regex.error as error:
        raise TargetError(f"{pattern!r} is not a regular expression: {error}") from error


def matches(pattern: str, name: str, classes: Sequence[str]) -> bool:
    """Whether a target or ignore pattern means this module.

    Args:
        pattern: an exact name, `re:` and a regular expression that is matched from the start, or a class name.
        name: of the module, from the root of the model.
        classes: what `class_names` says of it.
    """
    return matches_name(pattern, name) or pattern in classes


def oriented(weight: Tensor, classes: Sequence[str]) -> Tensor:
    """A weight as [O, I], where its module stores [I, O] as `Conv1D` does; its own inverse, and a view."""
    return weight.t() if "Conv1D" in classes else weight


def is_linear(module: nn.Module) -> bool:
    """Whether the module is a linear layer with a matrix of weights of its own."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 2 and "Linear" in class_names(module)


def input_dim(module: nn.Module) -> int:
    """The dimension of a linear layer's stored weight that holds input channels: 1, or 0 for `Conv1D`."""
    return 0 if "Conv1D" in class_names(module) else 1


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
        return oriented(weight, self.classes)

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

    @classmethod
    def whole(cls, model: nn.Module) -> "Stage":
        """All of a model as one stage."""
        return cls("model", 0, dict(model.named_modules()))

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


@frozen
class Pass:
    """One run of a batch through a stage.

    Attributes:
        index: of the batch, from 0.
        original: whether it saw the outputs of the original blocks before the stage, and not of the compressed ones.
    """

    index: int
    original: bool = False


@frozen(eq=False)
class Call:
    """What the model calls a stage with, or a module of it, for one batch.

    Attributes:
        index: of the batch, from 0.
        args: positional arguments.
        kwargs: keyword arguments.
        forward: the forward of the module, as it is now.
    """

    index: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    forward: Callable[..., Any]

    def run(self) -> Any:
        """The module's output for these arguments, with the weights that it has now.

        Inside of `torch.enable_grad()` the graph is recorded, if the modifier needs gradients.
        """
        return self.forward(*self.args, **self.kwargs)

    def output(self) -> Tensor:
        """The first tensor of the output, such as the hidden states of a block, [B, S, D]."""
        return first_tensor(self.run())


def calls_inside(call: Call, module: nn.Module) -> Iterator[Call]:
    """What a stage, run for one of its calls, calls a module inside of it with; nothing is left on the module."""
    seen: list[Call] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(Call(call.index, args, kwargs, module.__call__))

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        call.run()
    finally:
        handle.remove()
    yield from seen


def first_tensor(value: Any) -> Tensor:
    """The first tensor of a module's output, whatever holds it.

    Raises:
        TypeError: there is none.
    """
    if isinstance(value, Tensor):
        return value
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, Sequence) else ()
    for part in parts:
        if isinstance(part, Tensor):
            return part
    raise TypeError(f"{type(value).__name__} holds no tensor")


def find_layers(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[Layer]:
    """The layers among named modules: linear layers and embeddings, whatever their class is called."""
    for name, module in modules:
        classes = class_names(module)
        weight = getattr(module, "weight", None)
        if ("Linear" in classes or "Embedding" in classes) and isinstance(weight, Tensor) and weight.ndim == 2:
            yield Layer(name, module, classes)
