"""Probing for modifiers: what a block is called with, and what its layers share, once a run for each kind of block."""

from collections.abc import Iterator
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from coldpress.attachment import every_attachment
from coldpress.dataflow import Dataflow, capture, find_pairs, shared_parameters, signature, token_batch
from coldpress.dataflow.call import Call
from coldpress.dataflow.partition import block_names
from coldpress.dataflow.skeleton import is_meta, skeleton
from coldpress.errors import ModelError
from coldpress.state import State

_TEXT = frozenset({"input_ids", "attention_mask", "labels", "use_cache"})


@frozen(eq=False)
class _Probed:
    """What is known of the blocks of a model, by kind of block."""

    model: nn.Module
    calls: dict[Any, Call | str] = field(init=False, factory=dict)
    flows: dict[Any, Dataflow | str] = field(init=False, factory=dict)


def kind_of(state: State, block: str) -> Any:
    """What two blocks have in common of which one need not be probed: modules, shapes, attachments, shared weights."""
    module = state.model.get_submodule(block)
    shared = shared_parameters(state.model, block) if block else {}
    attached = tuple((name, one.kind) for name, _, one in every_attachment(module.named_modules()))
    return signature(module), tuple(sorted(shared.items(), key=lambda item: item[0])), attached


def dataflow_of(state: State, block: str) -> Dataflow | str:
    """What probing finds of a block, once for each kind of block in a run; or why it could not be probed."""
    key, known = kind_of(state, block), state.fact(_Probed).flows
    if key not in known:
        known[key] = _probed(state, block)
    return known[key]


def call_of(state: State, block: str) -> Call | str:
    """What a block is called with, once for each kind of block in a run; or why it could not be called."""
    key, known = kind_of(state, block), state.fact(_Probed).calls
    if key not in known:
        known[key] = next(_calls(state, block))
    return known[key]


def _probed(state: State, block: str) -> Dataflow | str:
    module = state.model.get_submodule(block)
    shared = shared_parameters(state.model, block) if block else {}
    reason = ""
    for call in _calls(state, block):
        if isinstance(call, str):
            reason = call
            continue
        try:
            flow = find_pairs(module, call, shared=shared, seed=state.seed)
        except ModelError as error:
            reason = str(error)
            continue
        state.fact(_Probed).calls[kind_of(state, block)] = call
        return flow
    return f"probing failed: {reason.splitlines()[0][:200]}"


def _calls(state: State, block: str) -> Iterator[Call | str]:
    """The calls of a block by each of the batches that may be run to see it, or why there is none."""
    model = skeleton(state.model, state.fact(block_names)) if is_meta(state.model) else state.model
    for batch in _probing_batches(state):
        try:
            calls = capture(model, [block], batch)
            yield calls.get(block, "the block is never called")
        except ModelError as error:
            yield str(error)


def _probing_batches(state: State) -> list[dict[str, Any]]:
    """What may be run to see how a block is called: random tokens where text is all that there is, then real ones."""
    if not state.batches:
        return [token_batch(state.model, seed=state.seed)]
    first = state.batches[0]
    device = next((p.device for p in state.model.parameters() if not p.is_meta), torch.device("cpu"))
    real = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in first.items()}
    try:
        return [token_batch(state.model, seed=state.seed), real] if first.keys() <= _TEXT else [real]
    except ModelError:
        return [real]
