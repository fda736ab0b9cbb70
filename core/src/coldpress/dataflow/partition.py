"""A model cut into prologue, blocks and epilogue."""

import logging
from collections.abc import Mapping, Sequence
from itertools import accumulate

from torch import nn

from coldpress.dataflow.blocks import Block, block_lists, find_blocks
from coldpress.errors import ModelError
from coldpress.stage import Stage, find_layers

log = logging.getLogger(__name__)


def partition(model: nn.Module, targets: Sequence[str] | None = None) -> list[Stage]:
    """The model as prologue, blocks, what lies between lists of blocks, and epilogue, in the order of its modules.

    Every module is in exactly one stage.
    A model without blocks is one stage, `model`.

    Args:
        model: any module; may be on the meta device.
        targets: what a block is: names, `re:` patterns or class names; None finds the lists of blocks.  A module inside
            of a block is taken as that block.

    Raises:
        TargetError: `targets` match nothing.
    """
    blocks = _homes(model, targets)
    if not blocks:
        return [Stage.whole(model)]
    parts: dict[str, dict[str, nn.Module]] = {}
    seen: list[str] = []
    for path, module in model.named_modules():
        block = next((name for name in accumulate(path.split("."), "{}.{}".format) if name in blocks), None)
        if block is not None and block not in seen:
            seen.append(block)
        gap = "prologue" if not seen else "epilogue" if len(seen) == len(blocks) else f"after {seen[-1]}"
        parts.setdefault(block or gap, {})[path] = module
    return [Stage(name, index, modules) for index, (name, modules) in enumerate(parts.items())]


def block_names(model: nn.Module, targets: Sequence[str] | None = None) -> list[str]:
    """Names of the modules that `partition` takes for blocks, in the order of the model; none where none is found.

    Where `targets` name modules inside of blocks, a warning says so.

    Raises:
        TargetError: `targets` match nothing.
    """
    homes = _homes(model, targets)
    inside = next((name for home, names in homes.items() for name in names if name != home), None)
    if inside is not None:
        home = next(home for home, names in homes.items() if inside in names)
        log.warning("%s lies inside of the block %s: whole blocks are compressed one after the other", inside, home)
    return list(homes)


def _homes(model: nn.Module, targets: Sequence[str] | None) -> Mapping[str, list[str]]:
    """Name of each block to the names in it that `targets` mean, in the order of the model."""
    try:
        lists = block_lists(model)
    except ModelError:
        lists = []
    blocks = {block.name for blocks in lists if _is_stack(blocks) for block in blocks}
    if targets is None:
        return {name: [name] for name, _ in model.named_modules() if name in blocks}
    unsplit = set(getattr(model, "_no_split_modules", None) or ())
    homes: dict[str, list[str]] = {}
    for block in find_blocks(model, targets):
        around = [name for name in blocks if block.name.startswith(f"{name}.")]
        is_one = type(block.module).__name__ in unsplit or not around
        homes.setdefault(block.name if is_one else max(around, key=len), []).append(block.name)
    if any(names != [home] for home, names in homes.items()):  # then a single layer outside is no block either
        homes = {home: names for home, names in homes.items() if list(model.get_submodule(home).children())}
    return homes


def _is_stack(blocks: Sequence[Block]) -> bool:
    """Whether a list holds blocks, and not the parts of one: each has several layers of its own."""
    return all(len(list(find_layers(block.module.named_modules()))) > 1 for block in blocks)
