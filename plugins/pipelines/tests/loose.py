"""Models with a path of their own through three blocks, and a modifier that remembers what its layers saw."""

from collections.abc import Callable
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from coldpress.plugin import Batch, Modifier, Needs, Stage, State, hookimpl
from coldpress.recipe import Recipe
from coldpress.run.job import Job

SEEN = "seen"


@frozen(kw_only=True, eq=False)
class Watcher(Modifier):
    """Remembers every input of its layers, and halves their weights if told to."""

    halves: bool = False
    follows: bool = True

    def needs(self) -> Needs:
        return Needs(data=True, propagated_error=self.follows)

    @hookimpl
    def calibrate_batch(self, state: State, stage: Stage, batch: Batch) -> None:
        for layer in self.layers(stage):
            if layer.name in batch.inputs:
                state.log.append({SEEN: (layer.name, batch.index), "input": batch.inputs[layer.name].clone()})

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            if self.halves:
                layer.weight.copy_(layer.weight / 2)


@frozen(kw_only=True, eq=False)
class Halver(Watcher):
    """Halves weights, and looks at nothing."""

    halves: bool = True

    def needs(self) -> Needs:
        return Needs()


class Block(nn.Module):
    """Two linear layers and a counter of forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x + self.second(torch.relu(self.first(x)))


class Loose(nn.Module):
    """A model with three blocks and a path through them of its own."""

    def __init__(self, path: Callable[[list[nn.Module], Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(8, 4)
        self._path = path

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self._path(list(self.blocks), x))
        return out


def straight(blocks: list[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def twice(blocks: list[nn.Module], x: Tensor) -> Tensor:
    return straight(blocks, straight(blocks, x))


def some(blocks: list[nn.Module], x: Tensor) -> Tensor:
    return straight(blocks if x.sum() > 0 else blocks[::2], x)


def vectors(count: int = 4) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(1, 5, 8, generator=generator)} for _ in range(count)]


def watch(model: nn.Module, data: Any, pipeline: Any, **settings: Any) -> tuple[dict[Any, Tensor], State]:
    state = State(model=model, batches=data)
    Job(recipe=Recipe(Watcher(**settings)), state=state, pipeline=pipeline).run()
    return {entry[SEEN]: entry["input"] for entry in state.log if SEEN in entry}, state


def stages(state: State) -> list[str]:
    return [entry["stage"] for entry in state.log if "stage" in entry]


def untouched(model: nn.Module) -> bool:
    return not any(
        {"forward", "_call_impl"} & vars(module).keys() or module._forward_pre_hooks for module in model.modules()
    )
