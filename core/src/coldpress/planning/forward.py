"""One forward on the meta device: how many operations a stage takes, which layers share an input, what it holds.

torch counts the operations of products (`torch.utils.flop_counter`); beside it storages are counted while they live.
Where a model's forward looks at values, as a router of experts does, there is nothing to run on shapes alone: then
everything follows from the shapes of layers, and the result says so.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import finalize

import torch
from attrs import define, field, frozen
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from coldpress.calibration.batch import count_places
from coldpress.dataflow.fused import named_groups
from coldpress.stage import Layer, Stage

log = logging.getLogger(__name__)

TROUBLE = (RuntimeError, NotImplementedError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
_HELD = 6  # widths of a token that a block holds at once, where that is not known


@frozen
class LayerCall:
    """What a layer is called with for one batch.

    Attributes:
        input: a number that layers which read the same tensor have in common.
        tokens: that it is called with.
        held: bytes that the forward holds for its block when the layer is called, weights not counted.
    """

    input: int
    tokens: int
    held: int


@frozen
class StageForward:
    """One batch through one stage.

    Attributes:
        flops: operations of products.
        moved: bytes that operations write.
        peak: bytes that the forward holds for the stage at most; neither weights count, nor what earlier blocks have
            left, such as keys and values in a cache, which a run does without.
        arguments: bytes of the tensors that the stage is called with.
    """

    flops: float = 0.0
    moved: int = 0
    peak: int = 0
    arguments: int = 0


@frozen(eq=False)
class Forward:
    """One batch through a model.

    Attributes:
        tokens: of the batch.
        stages: by name.
        layers: by name, of every layer that was called.
        counted: whether the model was run; else all of it follows from the shapes of layers.
    """

    tokens: int
    stages: Mapping[str, StageForward]
    layers: Mapping[str, LayerCall]
    counted: bool = True


def forward_of(model: Any, stages: Sequence[Stage], batch: Mapping[str, Any]) -> Forward:
    """Run a model without data on a batch without data.

    Args:
        model: on the meta device.
        stages: of it.
        batch: keyword arguments of its forward; only shapes are looked at.
    """
    tokens = count_places(batch) or 1
    empty = {name: value for name, value in batch.items() if name != "attention_mask"}  # whose values would be read
    empty = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, empty)
    try:
        return _Run(model, stages).run(empty, tokens)
    except TROUBLE as error:
        log.debug("the forward of a %s needs values: %s", type(model).__name__, error)
        return _from_shapes(model, stages, tokens)


@define(eq=False)
class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that operations make, while they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held, self.peak, self.moved = 0, 0, 0
        self._known: dict[int, int] = {}  # storage -> number
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._note(value)
        return result

    def ignore(self, tensors: Iterator[Tensor]) -> None:
        """Do not count the storages of these."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()._cdata] = 0

    def number(self, tensor: Tensor) -> int:
        """What tells the storage of a tensor from every other one of the run."""
        return self._known.get(tensor.untyped_storage()._cdata, -1)

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._count += 1
        self._known[key] = self._count
        self.held += size
        self.moved += size
        self.peak = max(self.peak, self.held)
        finalize(storage, self._free, key, size).atexit = False

    def _free(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.held -= size


@define(eq=False)
class _Run:
    """The one forward, with what is noted on the way."""

    model: Any
    stages: Sequence[Stage]
    found: dict[str, StageForward] = field(factory=dict)
    layers: dict[str, LayerCall] = field(factory=dict)
    _storages: _Storages = field(factory=_Storages)
    _flops: FlopCounterMode = field(factory=lambda: FlopCounterMode(display=False))
    _since: tuple[float, int] = (0.0, 0)
    _left: int = 0  # bytes that stages before have left

    def run(self, batch: Mapping[str, Any], tokens: int) -> Forward:
        """All of it."""
        held = (*self.model.parameters(), *self.model.buffers())
        self._storages.ignore(iter([*held, *(x for x in tree_leaves(batch) if isinstance(x, Tensor))]))
        with torch.no_grad(), self._hooked(), self._storages, self._flops:
            self.model(**batch)
            last = next((stage.name for stage in reversed(self.stages) if stage.name not in self._blocks()), None)
            if last is not None:
                self._end(last, 0)
        return Forward(tokens, self.found, self.layers)

    def _blocks(self) -> dict[str, nn.Module]:
        return {stage.name: stage.modules[stage.name] for stage in self.stages if stage.name in stage.modules}

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        with ExitStack() as hooks:
            before = next((stage.name for stage in self.stages if stage.name not in self._blocks()), "")
            for name, module in self._blocks().items():
                first = module.register_forward_pre_hook(self._begin(name, before), with_kwargs=True)
                hooks.callback(first.remove)
                hooks.callback(module.register_forward_hook(self._finish(name)).remove)
            for stage in self.stages:
                for layer in stage.every_layer:
                    hooks.callback(layer.module.register_forward_pre_hook(self._called(layer)).remove)
            yield

    def _begin(self, name: str, before: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not self.found:
                self._end(before, 0)
            else:
                self._mark()
            arguments = _nbytes((args, kwargs))
            self.found[name] = StageForward(arguments=arguments)
            self._leave(arguments)

        return hook

    def _finish(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._end(name, self.found[name].arguments)
            self._leave(_nbytes(output))

        return hook

    def _called(self, layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            x = next((value for value in args if isinstance(value, Tensor)), None)
            if x is not None and layer.name not in self.layers:
                tokens = x.numel() // max(1, x.shape[-1]) if x.is_floating_point() else x.numel()
                self.layers[layer.name] = LayerCall(self._storages.number(x), tokens, self._storages.held - self._left)

        return hook

    def _mark(self) -> None:
        self._since = float(self._flops.get_total_flops()), self._storages.moved
        self._storages.peak = self._storages.held

    def _end(self, name: str, arguments: int) -> None:
        flops, moved = self._since
        self.found[name] = StageForward(
            self._flops.get_total_flops() - flops,
            self._storages.moved - moved,
            self._storages.peak - self._left,
            arguments,
        )
        self._mark()

    def _leave(self, passed_on: int) -> None:
        """From here on nothing counts that is held now, but for what is passed on."""
        self._left = max(0, self._storages.held - passed_on)


def _nbytes(values: Any) -> int:
    tensors = {id(x): x for x in tree_leaves(values) if isinstance(x, Tensor)}
    return sum(x.nbytes for x in tensors.values())


def _from_shapes(model: Any, stages: Sequence[Stage], tokens: int) -> Forward:
    """What follows from the shapes of layers: every one of them is called with every token."""
    numbers: dict[str, int] = {}
    for number, group in enumerate(named_groups(model)):
        numbers.update(dict.fromkeys(group, -2 - number))
    itemsize = getattr(model, "dtype", torch.float32).itemsize
    found: dict[str, StageForward] = {}
    layers: dict[str, LayerCall] = {}
    width = 1
    for stage in stages:
        linear = [layer for layer in stage.every_layer if "Linear" in layer.classes]
        flops = sum(2.0 * tokens * layer.weight.numel() for layer in linear)
        width = max((layer.weight.shape[1] for layer in linear), default=width)
        held = _HELD * tokens * width * itemsize
        moved = sum(tokens * layer.weight.shape[0] * itemsize for layer in linear)
        found[stage.name] = StageForward(flops, moved, held, tokens * width * itemsize)
        for layer in stage.every_layer:
            number = numbers.get(layer.name, len(layers))
            layers[layer.name] = LayerCall(number, tokens, held)
    return Forward(tokens, found, layers, counted=False)


def counted(run: Callable[[], Any]) -> tuple[Any, float, int]:
    """What a function on the meta device returns, the operations of its products, and the bytes that it writes."""
    storages, flops = _Storages(), FlopCounterMode(display=False)
    with torch.no_grad(), storages, flops:
        value = run()
    return value, float(flops.get_total_flops()), storages.moved
