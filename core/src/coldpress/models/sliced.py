"""Causal attention on a CPU, some queries at a time, so that they meet no keys that come after all of them.

torch's kernel for CPUs takes keys in blocks of 512, and leaves out a block that a whole block of queries may not see:
of a few hundred tokens none, so that half of the scores are computed to be masked.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

_NAME = "sdpa"  # of attention that calls torch's, in transformers' registry
_QUERIES = 64  # of a slice: the kernel's own block for so many tokens
_FEW, _MANY = 256, 768  # tokens from which slices gain a tenth to a third, and from which they gain nothing

_LOCK = Lock()
_RUNS: list[object] = []  # one for each context that is open


@contextmanager
def sliced_attention() -> Iterator[None]:
    """Inside, attention that transformers dispatches to torch is computed in slices where that is faster.

    It is the usual attention, called on slices of its queries: as exact, but not the same to the last bit.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if not _RUNS and ALL_ATTENTION_FUNCTIONS[_NAME] is not sdpa_attention_forward:  # of a plugin, or the program
        yield
        return
    usual = sdpa_attention_forward
    with _LOCK:
        _RUNS.append(usual)
        ALL_ATTENTION_FUNCTIONS.register(_NAME, partial(_in_slices, usual))
    try:
        yield
    finally:
        with _LOCK:
            _RUNS.pop()
            if not _RUNS:
                ALL_ATTENTION_FUNCTIONS.register(_NAME, usual)


def _in_slices(
    usual: Any,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *rest: Any,
    **more: Any,
) -> tuple[Tensor, None]:
    """What `usual` gives for these arguments, [B, T, heads, D], for queries [B, heads, T, D]."""
    if attention_mask is not None or not _is_causal(module, more) or not _gains(query, key):
        whole: tuple[Tensor, None] = usual(module, query, key, value, attention_mask, *rest, **more)
        return whole
    parts, more = [], {**more, "is_causal": False}
    for start in range(0, query.shape[2], _QUERIES):
        some = query[:, :, start : start + _QUERIES]
        stop = start + some.shape[2]
        seen = torch.ones(1, 1, stop - start, stop, dtype=torch.bool).tril(start)  # by a query, of the keys
        found, _ = usual(module, some, key[:, :, :stop], value[:, :, :stop], seen, *rest, **more)
        parts.append(found)
    return torch.cat(parts, 1), None


def _is_causal(module: nn.Module, more: Mapping[str, Any]) -> bool:
    """Whether attention without a mask is causal, and nothing else than that."""
    given = more.get("is_causal")
    plain = more.get("position_bias") is None and more.get("cache") is None
    return plain and bool(getattr(module, "is_causal", True) if given is None else given)


def _gains(query: Tensor, key: Tensor) -> bool:
    """Whether slices are faster: of 16-bit numbers on a CPU, with no gradients, of some hundred tokens."""
    plain = query.device.type == "cpu" and query.element_size() == 2 and not torch.is_grad_enabled()
    return plain and query.shape[2] == key.shape[2] and _FEW <= query.shape[2] < _MANY
