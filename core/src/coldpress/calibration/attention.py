"""Queries, keys and values where attention really runs: after rotation, whatever its kernel; seen and rounded there.

    q, k, v ── rotation ──> [ tap: seen or rounded ] ── sdpa, eager, ... ──> o_proj

transformers asks for the attention function by name; a model that is tapped asks for one of ours, which calls the
function that it had.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from attrs import define, field, frozen
from torch import Tensor, nn

from coldpress.calibration.observer import Observer
from coldpress.errors import CheckpointError, ModelError, NumericsError
from coldpress.numerics import calculate_qparams, fake_quantize, is_finite
from coldpress.schemes import QuantizationArgs

_PREFIX = "coldpress_"
_TAP = "coldpress_attention_tap"  # attribute of an attention module
SCALES = ("k_scale", "v_scale", "q_scale")
"""Buffers of an attention module whose keys and values, and perhaps queries, are quantized; what vLLM calls them."""

States = tuple[Tensor, Tensor, Tensor]
"""Keys and values, [B, H, S, D], and queries, [B, H, Q, D], in the order of `SCALES`."""


class AttentionTap(Protocol):
    """What looks at the keys, values and queries of an attention module, and may change them."""

    def __call__(self, module: nn.Module, states: States, mask: Any) -> States:
        """The states as attention shall see them.

        Args:
            module: whose attention is about to run.
            states: keys and queries after rotation, values as they are.
            mask: [B, 1, Q, S], True or 0 where attention looks; None where it looks everywhere.
        """
        ...


@frozen(eq=False)
class CacheRounding:
    """Keys and values, and perhaps queries, rounded to the grid that they have when the model is served.

    Attributes:
        args: of all of them; the scales are buffers of the module.
    """

    args: QuantizationArgs

    def __call__(self, module: nn.Module, states: States, mask: Any) -> States:
        """Round those that have a scale."""
        scales = [getattr(module, name, None) for name in SCALES]
        key, value, query = (
            x if scale is None else fake_quantize(x, scale.to(x.device), None, self.args)
            for x, scale in zip(states, scales, strict=True)
        )
        return key, value, query


@define(eq=False)
class CacheWatch:
    """What observers saw of the keys, values and queries of every attention module of a model.

    Attributes:
        observer: with the arguments of all of them.
        queries: names of classes of attention modules whose queries are seen too.
        seen: attention module to the statistics of its keys, of its values and, if they are seen, of its queries.
        calls: attention module to how often it ran.
    """

    observer: Observer
    queries: frozenset[str] = frozenset()
    seen: dict[nn.Module, tuple[Any, ...]] = field(factory=dict)
    calls: Counter[nn.Module] = field(factory=Counter)

    def __call__(self, module: nn.Module, states: States, mask: Any) -> States:
        """See them, without padding."""
        tokens = _tokens(mask, states[0])
        wanted = states if type(module).__name__ in self.queries else states[:2]
        before = self.seen.get(module, (None,) * len(wanted))
        self.seen[module] = tuple(
            self.observer.update(statistic, self._grouped(x, tokens))
            for statistic, x in zip(before, wanted, strict=True)
        )
        self.calls[module] += 1
        return states

    def _grouped(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        """[1, n] for one scale a tensor, [H, 1, 1, n] for one scale a head."""
        if not is_finite(x):
            raise NumericsError("queries, keys or values of an attention have NaN or Inf; nothing was written")
        heads = x.detach().transpose(1, 2)  # [B, S, H, D]; queries are the last of the tokens
        heads = heads.flatten(0, 1) if tokens is None else heads[tokens[:, -heads.shape[1] :]]  # [T, H, D]
        if self.observer.args.strategy == "attn_head":
            return heads.transpose(0, 1).reshape(x.shape[1], 1, 1, -1)
        return heads.reshape(1, -1)


def watch_caches(model: nn.Module, observer: Observer, *, queries: frozenset[str] = frozenset()) -> CacheWatch:
    """Observe keys and values in every attention of a model from now on, and queries in those of some classes.

    Raises:
        ModelError: attention of this model cannot be tapped.
    """
    watch = CacheWatch(observer, queries)
    _tap(model)
    for module in model.modules():
        if not hasattr(module, _TAP):
            setattr(module, _TAP, watch)
    return watch


def cache_watch(model: nn.Module) -> CacheWatch | None:
    """The watch that is on a model; None where there is none."""
    found = getattr(model, _TAP, None)
    return found if isinstance(found, CacheWatch) else None


def stop_watching(model: nn.Module) -> None:
    """Leave every attention alone that is watched still."""
    for module in model.modules():
        if isinstance(getattr(module, _TAP, None), CacheWatch):
            delattr(module, _TAP)


def quantize_seen(watch: CacheWatch, dtype: torch.dtype, *, calls: int) -> None:
    """Give every attention that has seen all data the scales that follow, and round what it sees from now on.

    Args:
        watch: which forgets them; what has run less often stays in it.
        dtype: of the scales.
        calls: how often an attention runs when it sees all data; a pipeline may run one batch more than once.
    """
    for module in [module for module in watch.seen if watch.calls[module] >= calls]:
        args = watch.observer.args
        ranges = [watch.observer.range(statistic) for statistic in watch.seen.pop(module)]
        round_cache(module, args, *(calculate_qparams(*ends, args)[0].to(dtype) for ends in ranges))


def round_cache(module: nn.Module, args: QuantizationArgs, *scales: Tensor) -> None:
    """Make scales, in the order of `SCALES`, buffers of an attention module, which rounds with them from now on."""
    for name, scale in zip(SCALES, scales, strict=False):
        module.register_buffer(name, scale)
    setattr(module, _TAP, CacheRounding(args))


def round_caches(model: nn.Module, args: QuantizationArgs, scales: Mapping[str, Tensor]) -> None:
    """Put scales that were read where they belong.

    Args:
        model: without them.
        args: of keys, values and queries.
        scales: by their full names, `model.layers.0.self_attn.k_scale`.

    Raises:
        ModelError: attention of this model cannot be tapped.
        CheckpointError: an attention has some of its scales only.
    """
    _tap(model)
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in scales):
        found = [scales[name] for name in (f"{owner}.{part}" for part in SCALES) if name in scales]
        if not {f"{owner}.{part}" for part in SCALES[:2]} <= scales.keys():
            raise CheckpointError(f"{owner} lacks one of {', '.join(SCALES[:2])}, the scales of its keys and values")
        round_cache(model.get_submodule(owner), args, *found)


def rounds_queries(module: nn.Module) -> bool:
    """Whether an attention module rounds its queries beside its keys and values."""
    return isinstance(getattr(module, _TAP, None), CacheRounding) and hasattr(module, SCALES[2])


def rounded_caches(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, QuantizationArgs]]:
    """Name and arguments of every attention whose keys and values are rounded."""
    for name, module in modules.items():
        tap = getattr(module, _TAP, None)
        if isinstance(tap, CacheRounding):
            yield name, tap.args


def _tap(model: Any) -> None:
    """Let a model ask for our attention functions."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = getattr(model, "config", None)
    had = getattr(config, "_attn_implementation", None)
    if not isinstance(had, str) or not callable(getattr(model, "set_attn_implementation", None)):
        raise ModelError(f"{type(model).__name__} has no attention that transformers dispatches: it cannot be tapped")
    if had.startswith(_PREFIX):
        return
    name = _PREFIX + had
    ALL_ATTENTION_FUNCTIONS.register(name, _attention(had))
    if had in ALL_MASK_ATTENTION_FUNCTIONS:
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[had])
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise ModelError(f"{type(model).__name__} does not let its attention be chosen: it cannot be tapped")


def _attention(had: str) -> Callable[..., Any]:
    """The attention function of this name, which first shows keys and values to the tap of the module."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, *rest: Any, **more: Any) -> Any:
        tap: AttentionTap | None = getattr(module, _TAP, None)
        if tap is not None:
            key, value, query = tap(module, (key, value, query), mask)
        own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        function = ALL_ATTENTION_FUNCTIONS.get_interface(had, own)
        return function(module, query, key, value, mask, *rest, **more)

    return attend


def _tokens(mask: Any, key: Tensor) -> Tensor | None:
    """Which keys some query looks at, [B, S] bool; None where there is no mask to tell."""
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[-1] != key.shape[2]:
        return None
    looks = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return looks.any(dim=1).any(dim=1).expand(key.shape[0], -1)
