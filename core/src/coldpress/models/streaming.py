"""A model that is larger than memory: built without weights, which are read when a stage's turn comes, and dropped.

    weights = stream_model(checkpoint, ...) parameters on the meta device, buffers computed (see skeleton.py)
    weights.read(stage.modules)             from the files, when the stage is about to be worked on
    weights.drop(stage.modules)             back to the meta device, when it is no longer needed

A module that is called while its weights are away fetches them by itself, so that a pipeline may run any part of the
model at any time.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from coldpress.checkpoint.place import Picked, Place, PlaceReader
from coldpress.experts import Dropped
from coldpress.models.heap import trim_heap
from coldpress.source import Weights

log = logging.getLogger(__name__)

Fetch = Callable[[str, nn.Module], Mapping[str, Tensor]]
"""Name and module to the module's tensors by their names from the root."""


@define(eq=False)
class WeightStream:
    """The weights of a model, of which only those of a few modules are in memory; a context while the model runs.

    A parameter that several modules share stays one object; it is dropped when the last of them is.

    Attributes:
        model: whose parameters come and go.
        reader: where they come from.
        places: name of a parameter to where it is in the checkpoint.
        extra: tensors of the checkpoint that the model has no place for.
        device: where they are put.
        fetch_again: how a module gets its weights after it was dropped, for by then they are others; None forbids it.
    """

    model: Any
    reader: Weights
    places: Mapping[str, Place]
    device: torch.device
    extra: tuple[str, ...] = ()
    fetch_again: Fetch | None = None
    _placed: PlaceReader = field(init=False)
    _dropped: set[nn.Module] = field(factory=set)
    _owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = field(factory=dict)
    _hooks: list[RemovableHandle] = field(factory=list)

    @_placed.default
    def _make_reader(self) -> PlaceReader:
        return PlaceReader(self.reader)

    def __enter__(self) -> "WeightStream":
        for name, module in self.model.named_modules():
            parts = _read_at_once(name, module)
            if any(True for part in parts.values() for _ in part.parameters(recurse=False)):
                self._hooks.append(module.register_forward_pre_hook(self._fetcher(parts)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def read(self, modules: Mapping[str, nn.Module]) -> None:
        """Bring the weights of named modules into memory, in the dtype of the model.

        Raises:
            CheckpointError: a file has become unreadable.
        """
        for name, module in modules.items():
            for part, parameter in module.named_parameters(recurse=False):
                if parameter.is_meta:
                    self._put(parameter, self._placed.read(self.places[_join(name, part)], parameter.dtype))
        self._placed.forget()

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Give parameters and buffers the values of `tensors`, by name, whether or not they are in memory."""
        for name, value in tensors.items():
            tensor = _tensor_of(self.model, name)  # by another name of it, it may be in memory since a moment ago
            if isinstance(tensor, nn.Parameter) and tensor.is_meta:
                self._put(tensor, value)
            else:
                fill(self.model, {name: value})

    def drop(self, modules: Mapping[str, nn.Module]) -> None:
        """Free the weights of modules that are done, but for those which a module that is not done shares.

        Those of a module around others that are not done stay too: its forward may run, and be about to read them.
        """
        self._dropped.update(modules.values())
        for module in modules.values():
            for _, parameter in list(module.named_parameters(recurse=False)):
                owners = self._owners_of(parameter)
                if not parameter.is_meta and all(self._dropped.issuperset(owner.modules()) for owner, _ in owners):
                    self._replace(parameter, parameter.detach().to("meta"))
        trim_heap()

    def release(self, modules: Mapping[str, nn.Module]) -> None:
        """Free weights that have not changed; they are read again when they are needed.

        Those of a module around others stay, as its forward may run.
        """
        inside = set(modules.values())
        for module in modules.values():
            if not inside.issuperset(module.modules()):
                continue
            for _, parameter in list(module.named_parameters(recurse=False)):
                if not parameter.is_meta:
                    self._replace(parameter, parameter.detach().to("meta"))
        trim_heap()

    def follow(self, dropped: Dropped) -> None:
        """The model has fewer experts now: their tensors, and rows of others, come from where they were."""
        places = dict(self.places)
        moved = {new: places[old] for new, old in dropped.renamed.items() if old in places}
        shortened = {name: Picked(places[name], rows) for name, rows in dropped.rows.items() if name in places}
        self.places = {**places, **moved, **shortened}
        self._owners.clear()
        if self._hooks:  # they know modules by the names that these had
            self.__exit__(None, None, None)
            self.__enter__()

    def _put(self, parameter: nn.Parameter, tensor: Tensor) -> None:
        self._replace(parameter, tensor.to(self.device, parameter.dtype))

    def _replace(self, old: nn.Parameter, tensor: Tensor) -> None:
        new = nn.Parameter(tensor, requires_grad=old.requires_grad)
        owners = self._owners_of(old)
        for owner, part in owners:
            owner._parameters[part] = new
        self._owners.pop(old, None)
        self._owners[new] = owners

    def _owners_of(self, parameter: nn.Parameter) -> list[tuple[nn.Module, str]]:
        """Every module that has this parameter, and what it calls it."""
        found = self._owners.get(parameter)
        if found is None or any(owner._parameters.get(part) is not parameter for owner, part in found):
            self._owners.clear()  # a module was given a parameter of its own
            for module in self.model.modules():
                for part, other in module.named_parameters(recurse=False):
                    self._owners.setdefault(other, []).append((module, part))
            found = self._owners[parameter]
        return found

    def _fetcher(self, parts: Mapping[str, nn.Module]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """A hook that brings the weights of a module that is called, and of others that it reads without a call."""

        def fetch(module: nn.Module, args: tuple[Any, ...]) -> None:
            for name, part in parts.items():
                if any(parameter.is_meta for parameter in part.parameters(recurse=False)):
                    self._fetch(name, part)

        return fetch

    def _fetch(self, name: str, module: nn.Module) -> None:
        log.debug("%s is called out of turn: its weights are read for it", name)
        if module not in self._dropped:
            self.read({name: module})
            return
        assert self.fetch_again is not None, f"{name} is called after it was dropped"
        self.fill(self.fetch_again(name, module))


def _read_at_once(name: str, module: nn.Module) -> dict[str, nn.Module]:
    """A module, and those inside of it whose weights it reads without calling them, as torch's own attention does."""
    kind = type(module).__module__
    whole = kind.startswith("torch.nn.") and not kind.endswith(".container")
    return {_join(name, inner): part for inner, part in module.named_modules()} if whole else {name: module}


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite parameters and buffers of a model in memory, by name."""
    for name, tensor in tensors.items():
        _tensor_of(model, name).data.copy_(tensor)


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules that are built inside have their parameters on the meta device; buffers are computed as ever."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            empty = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
            empty.__dict__.update(parameter.__dict__)
            parameter = empty
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _tensor_of(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer."""
    owner, _, part = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), part)
    return tensor


def _join(owner: str, part: str) -> str:
    return f"{owner}.{part}" if owner and part else owner or part
