"""The whole model's dataflow as plain data: what `coldpress trace MODEL` prints.

prologue ──> blocks (each kind probed once) ──> epilogue
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from coldpress.dataflow.blocks import Block, block_lists, find_blocks
from coldpress.dataflow.call import Call, capture
from coldpress.dataflow.probe import Dataflow, find_pairs
from coldpress.dataflow.sharing import shared_parameters
from coldpress.dataflow.skeleton import is_meta, skeleton
from coldpress.errors import ModelError
from coldpress.stage import is_linear

TOKENS = (2, 12)  # sequences and tokens of the probing batch


@frozen(eq=False)
class BlockKind:
    """Blocks that are alike.

    Attributes:
        class_name: class of the blocks.
        blocks: their names in the model.
        dataflow: of the first of them; None where it could not be probed.
        reason: why not.
    """

    class_name: str
    blocks: tuple[str, ...]
    dataflow: Dataflow | None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        flow = self.dataflow.to_dict() if self.dataflow else None
        return {"class": self.class_name, "blocks": list(self.blocks), "dataflow": flow, "reason": self.reason}


@frozen(eq=False)
class Description:
    """A model's stages and what flows where in them.

    Attributes:
        class_name: class of the model.
        prologue: modules with weights that run before the first block.
        kinds: the blocks, alike ones together.
        epilogue: modules with weights outside the blocks that do not run before the first.
    """

    class_name: str
    prologue: tuple[str, ...]
    kinds: tuple[BlockKind, ...]
    epilogue: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "model": self.class_name,
            "prologue": list(self.prologue),
            "kinds": [k.to_dict() for k in self.kinds],
            "epilogue": list(self.epilogue),
        }


def describe(
    model: nn.Module, batch: Mapping[str, Any] | None = None, *, targets: Sequence[str] | None = None, seed: int = 0
) -> Description:
    """Probe one block of each kind.

    Args:
        model: in memory or on the meta device; run on the batch once, as far as the last kind of block.
        batch: keyword arguments of its forward; None makes random token ids.
        targets: what a block is, see `find_blocks`.
        seed: of the batch and the factors.

    Raises:
        ModelError: no blocks, or the model refuses the batch.
        TargetError: `targets` match nothing.
    """
    batch = batch if batch is not None else token_batch(model, seed=seed)
    before: list[str] = []
    blocks, calls = capture_blocks(model, batch, targets=targets, before=before)
    kinds = {b.kind: [x for x in blocks if x.kind == b.kind] for b in blocks}
    described = tuple(_describe_kind(model, same, calls, seed) for same in kinds.values())
    outside = _outside(model, blocks)
    prologue = tuple(n for n in outside if n in before)
    return Description(type(model).__name__, prologue, described, tuple(n for n in outside if n not in before))


def token_batch(model: nn.Module, *, seed: int = 0) -> dict[str, Tensor]:
    """Random token ids that the model's input embedding has rows for."""
    find: Callable[[], Any] | Any = getattr(model, "get_input_embeddings", None)
    embedding = find() if callable(find) else None
    rows = getattr(embedding, "num_embeddings", None) or getattr(getattr(model, "config", None), "vocab_size", None)
    if not isinstance(rows, int):
        raise ModelError(f"{type(model).__name__} has no input embedding to make a batch for; hand over a batch")
    generator = torch.Generator().manual_seed(seed)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    ids = torch.randint(min(3, rows - 1), min(rows, 1000), TOKENS, generator=generator)
    ids = ids if device.type == "meta" else ids.to(device)
    both = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return {"input_ids": ids, "decoder_input_ids": ids} if both else {"input_ids": ids}


def first_of_each_kind(blocks: Sequence[Block]) -> list[Block]:
    """One block per kind, in order."""
    return list({b.kind: b for b in reversed(blocks)}.values())[::-1]


def capture_blocks(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    targets: Sequence[str] | None = None,
    before: list[str] | None = None,
) -> tuple[list[Block], dict[str, Call]]:
    """The first list of blocks that the batch reaches, and the calls of one block per kind.

    Args:
        model: in memory or on the meta device.
        batch: keyword arguments of its forward.
        targets: what a block is, see `find_blocks`.
        before: takes the names of the modules with weights that run before the first block.

    Raises:
        ModelError: no blocks, or the model refuses the batch.
        TargetError: `targets` match nothing.
    """
    before = [] if before is None else before
    lists = [find_blocks(model, targets)] if targets else block_lists(model)
    for blocks in lists:
        wanted = [b.name for b in first_of_each_kind(blocks)]
        before.clear()
        running = skeleton(model, [b.name for b in blocks]) if is_meta(model) else model
        with _Watch(running, blocks, before):
            calls = capture(running, wanted, batch)
        if calls:
            return blocks, calls
    return lists[0], {}


class _Watch:
    """Notes the modules with weights that run before any block does."""

    def __init__(self, model: nn.Module, blocks: Sequence[Block], before: list[str]) -> None:
        self._started = False
        self._before = before
        self._handles = [model.get_submodule(b.name).register_forward_pre_hook(self._start) for b in blocks]
        for name in _outside(model, blocks):
            hook = model.get_submodule(name).register_forward_pre_hook(lambda *_, n=name: self._note(n))
            self._handles.append(hook)

    def __enter__(self) -> None:
        """Nothing to do: the hooks are there."""

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _start(self, *_: object) -> None:
        self._started = True

    def _note(self, name: str) -> None:
        if not self._started and name not in self._before:
            self._before.append(name)


def _describe_kind(model: nn.Module, same: Sequence[Block], calls: Mapping[str, Call], seed: int) -> BlockKind:
    first = same[0]
    names = tuple(b.name for b in same)
    if first.name not in calls:
        return BlockKind(type(first.module).__name__, names, None, "never called on this batch")
    try:
        shared = shared_parameters(model, first.name)
        flow = find_pairs(first.module, calls[first.name], shared=shared, seed=seed)
        return BlockKind(type(first.module).__name__, names, flow)
    except ModelError as e:
        return BlockKind(type(first.module).__name__, names, None, str(e))


def _outside(model: nn.Module, blocks: Sequence[Block]) -> list[str]:
    """Modules outside the blocks that own weights or are linear layers."""
    inside = tuple(b.name + "." for b in blocks)
    own = [
        n for n, m in model.named_modules() if n and (is_linear(m) or any(True for _ in m.parameters(recurse=False)))
    ]
    return [n for n in own if not (n + ".").startswith(inside)]
