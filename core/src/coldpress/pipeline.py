"""Pipeline: how a model is cut into stages and how calibration batches travel through them."""

from collections.abc import Iterator
from typing import ClassVar

from attrs import frozen
from torch import nn

from coldpress.stage import Stage
from coldpress.state import State


@frozen(kw_only=True, eq=False)
class Pipeline:
    """Base of all pipelines; their fields are their settings.

    Attributes:
        runs_batches: whether `sweep` runs anything; a recipe that needs data cannot use a pipeline that does not.
    """

    runs_batches: ClassVar[bool] = True

    def stages(self, state: State) -> Iterator[Stage]:
        """Yield the stages in the order in which the model runs them.

        A generator: when it is asked for the next stage, the one before is compressed, and it pushes every batch on
        through it.  It undoes whatever it did to the model when it ends or is closed.
        """
        raise NotImplementedError

    def sweep(self, state: State, stage: Stage) -> Iterator[int]:
        """Run the stage once on every batch; yield the index of each batch just after the stage ran on it."""
        raise NotImplementedError


def partition(model: nn.Module) -> list[Stage]:
    """The model as prologue, blocks and epilogue, in the order in which its modules are registered.

    The blocks are the elements of its largest module list, by number of parameters.
    Every module that has a tensor of its own is in exactly one stage; a model without a list is one stage.
    """
    lists = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) > 1]
    if not lists:
        return [Stage("model", 0, dict(model.named_modules()))]
    name, _ = max(lists, key=lambda item: sum(parameter.numel() for parameter in item[1].parameters()))
    blocks: dict[str, dict[str, nn.Module]] = {"prologue": {}}
    for path, module in model.named_modules():
        if path.startswith(f"{name}."):
            blocks.setdefault(f"{name}.{path[len(name) + 1 :].split('.')[0]}", {})[path] = module
        elif len(blocks) > 1:
            blocks.setdefault("epilogue", {})[path] = module
        else:
            blocks["prologue"][path] = module
    return [Stage(stage, index, modules) for index, (stage, modules) in enumerate(blocks.items())]
