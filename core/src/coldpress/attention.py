"""Queries, keys and values where attention runs: after rotary embedding, whatever the kernel.

    q, k, v ── rotary embedding ──> [ taps: attachments, then statistics ] ── sdpa, eager, ... ──> o_proj

A module of transformers looks its attention function up by the name in its configuration.  A module that is tapped has
a configuration of its own, which names a function that runs the taps and then the one that the model's configuration
names; all else it reads from there, so that copies, pickles and `set_attn_implementation` do what they did before.
"""

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from attrs import frozen
from torch import Tensor, nn

from coldpress.errors import ModelError

_PREFIX = "coldpress_"
_REGISTRY = "ALL_ATTENTION_FUNCTIONS"  # of transformers; what a forward that dispatches its attention looks into
_LOCAL = threading.local()


@frozen(eq=False)
class AttentionStates:
    """What an attention function is called with.

    Attributes:
        keys: after rotary embedding, [B, H, S, D], one head for a group of query heads.
        values: [B, H, S, D].
        queries: after rotary embedding, [B, heads of the queries, Q, D].
    """

    keys: Tensor
    values: Tensor
    queries: Tensor


AttentionPart = Literal["keys", "values", "queries"]


@frozen(eq=False)
class AttentionInput:
    """Keys, values or queries where attention runs: with the inputs of layers what statistics are collected of.

    Attributes:
        owner: name of the attention module, from the root of the model.
        module: the module itself.
        part: which of the three; keys and queries are seen after rotary embedding.
    """

    owner: str
    module: nn.Module
    part: AttentionPart

    @property
    def name(self) -> str:
        """The name by which statistics know it, which is that of no module."""
        return f"{self.owner}.{self.part}"


Tap = Callable[[nn.Module, AttentionStates], AttentionStates]
"""What sees the states of a module's attention, and returns them as the attention shall see them."""


class TappedConfig:
    """A module's configuration in all but the attention function.

    Args:
        own: the configuration that the module shares with its model.
    """

    def __init__(self, own: Any) -> None:
        self.__dict__.update(own=own, taps=[])

    @property
    def _attn_implementation(self) -> str:
        found: str = self.own._attn_implementation
        if getattr(_LOCAL, "attends", False):  # the function itself asks which one it is
            return found
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        if _PREFIX + found not in ALL_ATTENTION_FUNCTIONS:
            ALL_ATTENTION_FUNCTIONS.register(_PREFIX + found, partial(_attend, found))
        return _PREFIX + found

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("own", "taps"):  # of an object that is being copied
            raise AttributeError(name)
        return getattr(self.own, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.own, name, value)


def dispatches_attention(module: nn.Module) -> bool:
    """Whether a module looks its attention function up where transformers keeps them all."""
    return _REGISTRY in _names_in_forward(module) and hasattr(module, "config")


def attention_modules(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Those of some modules whose attention can be tapped, by name."""
    for name, module in modules.items():
        if dispatches_attention(module):
            yield name, module


def tap_attention(module: nn.Module, tap: Tap, *, first: bool = False) -> None:
    """Run a tap whenever the attention of a module runs, after the taps that it has, or before them.

    Raises:
        ModelError: the module does not look its attention function up where transformers keeps them.
    """
    config: Any = getattr(module, "config", None)
    if not dispatches_attention(module) or not isinstance(config._attn_implementation, str):
        kind = type(module).__name__
        raise ModelError(f"a {kind} has no attention that transformers dispatches: it cannot be tapped")
    if not isinstance(config, TappedConfig):
        config = TappedConfig(config)
        module.config = config
    config.taps.insert(0 if first else len(config.taps), tap)


def untap_attention(module: nn.Module, tap: Tap) -> None:
    """Run a tap no more; a module without taps has the configuration of its model again."""
    config: Any = getattr(module, "config", None)
    if isinstance(config, TappedConfig) and tap in config.taps:
        config.taps.remove(tap)
        if not config.taps:
            module.config = config.own


@contextmanager
def attention_tapped(module: nn.Module, tap: Tap, *, first: bool = False) -> Iterator[None]:
    """Inside, the attention of a module has one more tap.

    Raises:
        ModelError: as `tap_attention`.
    """
    tap_attention(module, tap, first=first)
    try:
        yield
    finally:
        untap_attention(module, tap)


def run_attention_taps(module: nn.Module, states: AttentionStates) -> AttentionStates:
    """The states after every tap of a module; one that comes while another one waits is not left out."""
    done: list[Tap] = []
    while waiting := [tap for tap in module.config.taps if tap not in done]:  # type: ignore[union-attr]
        states = waiting[0](module, states)
        done.append(waiting[0])
    return states


def _attend(
    implementation: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any
) -> Any:
    """Run the taps of a module, and then the attention function of this name."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    states = run_attention_taps(module, AttentionStates(keys=key, values=value, queries=query))
    function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, _eager(module))
    _LOCAL.attends = True
    try:
        return function(module, states.queries, states.keys, states.values, *rest, **more)
    finally:
        _LOCAL.attends = False


def _eager(module: nn.Module) -> Any:
    """What the forward of a module falls back on where the registry has no function."""
    known: Mapping[str, Any] = getattr(_forward(module), "__globals__", {})
    named = (name for name in _names_in_forward(module) if name.endswith("eager_attention_forward"))
    return next((known[name] for name in named if name in known), None)


def _names_in_forward(module: nn.Module) -> tuple[str, ...]:
    code = getattr(_forward(module), "__code__", None)
    return () if code is None else code.co_names


def _forward(module: nn.Module) -> Any:
    return inspect.unwrap(type(module).forward)
