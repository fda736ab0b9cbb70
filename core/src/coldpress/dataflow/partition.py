"""A model cut into prologue, blocks and epilogue."""

from collections.abc import Sequence

from torch import nn

from coldpress.dataflow.blocks import Block, block_lists, find_blocks
from coldpress.errors import ModelError
from coldpress.stage import Stage, find_layers


def partition(model: nn.Module, targets: Sequence[str] | None = None) -> list[Stage]:
    """The model as prologue, blocks, what lies between lists of blocks, and epilogue, in the order of its modules.

    Every module is in exactly one stage.
    A model without blocks is one stage, `model`.

    Args:
        model: any module; may be on the meta device.
        targets: what a block is: names, `re:` patterns or class names; None finds the lists of blocks.

    Raises:
        TargetError: `targets` match nothing.
    """
    blocks = block_names(model, targets)
    if not blocks:
        return [Stage("model", 0, dict(model.named_modules()))]
    parts: dict[str, dict[str, nn.Module]] = {}
    seen: list[str] = []
    for path, module in model.named_modules():
        block = next((name for name in blocks if path == name or path.startswith(f"{name}.")), None)
        if block is not None and block not in seen:
            seen.append(block)
        gap = "prologue" if not seen else "epilogue" if len(seen) == len(blocks) else f"after {seen[-1]}"
        parts.setdefault(block or gap, {})[path] = module
    return [Stage(name, index, modules) for index, (name, modules) in enumerate(parts.items())]


def block_names(model: nn.Module, targets: Sequence[str] | None = None) -> list[str]:
    """Names of the modules that `partition` takes for blocks, in the order of the model; none where none is found.

    Raises:
        TargetError: `targets` match nothing.
    """
    if targets is not None:
        return [block.name for block in find_blocks(model, targets)]
    try:
        lists = block_lists(model)
    except ModelError:
        return []
    found = {block.name for blocks in lists if _is_stack(blocks) for block in blocks}
    return [name for name, _ in model.named_modules() if name in found]


def _is_stack(blocks: Sequence[Block]) -> bool:
    """Whether a list holds blocks, and not the parts of one: each has several layers of its own."""
    return all(len(list(find_layers(block.module.named_modules()))) > 1 for block in blocks)
