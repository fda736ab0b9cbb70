"""KV cache and attention, for modifiers: keys, values and queries rounded where attention runs.

A quantizer with `kv_cache_scheme` stands for one of layers and a `CacheQuantizer`, which works like this:

attachments   which attention modules will be rounded, and how
initialize    their keys and values are observed while data run, and the queries of some
finalize      those that have run get scales, and are rounded from now on
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from attrs import field, frozen
from torch import Tensor, nn

from coldpress.arguments import DEFAULT_ACTIVATION_OBSERVER
from coldpress.attachment import Attachment, every_attachment
from coldpress.attention import AttentionInput, AttentionPart, AttentionStates, attention_modules
from coldpress.calibration.observer import observer_for
from coldpress.calibration.statistics import Observed
from coldpress.errors import CalibrationError, ModelError, SchemeError, TargetError
from coldpress.hookspecs import hookimpl
from coldpress.modifier import QUANTIZES, RUNS_LAST, Modifier, Needs, names
from coldpress.numerics import calculate_qparams, fake_quantize_straight_through
from coldpress.schemes import QuantizationArgs, number_format
from coldpress.stage import Stage, find_layers
from coldpress.state import State

log = logging.getLogger(__name__)

_STRATEGIES = ("tensor", "attn_head")
_SCALES: dict[AttentionPart, str] = {"keys": "k_scale", "values": "v_scale", "queries": "q_scale"}  # as vLLM has them


def cache_args(value: Mapping[str, Any] | QuantizationArgs) -> QuantizationArgs:
    """The arguments of keys and values, from a table or as they are.

    Raises:
        SchemeError: keys and values cannot be quantized so; says how they can.
    """
    args = value if isinstance(value, QuantizationArgs) else QuantizationArgs.from_dict(value)
    wrong = None
    if args.dynamic:
        wrong = f"dynamic={args.dynamic!r}"
    elif not args.symmetric:
        wrong = "symmetric=false"
    elif args.strategy not in _STRATEGIES or args.scale_dtype is not None:
        wrong = f"strategy {args.strategy!r} with scales in {args.scale_dtype or 'the dtype of the model'}"
    if wrong:
        raise SchemeError(
            f"kv_cache_scheme: {wrong} is not supported; keys and values have static, symmetric scales, "
            "one for the tensor or, with strategy 'attn_head', one for each head"
        )
    number_format(args)
    return args


@frozen(kw_only=True)
class KVCache(Attachment):
    """Keys and values, and perhaps queries, on the grid that they have when the model is served.

    The scales are buffers of the attention module, [1], or [H, 1, 1] with one for each head.

    Attributes:
        args: of all of them.
        queries: whether queries are rounded too.
    """

    kind: ClassVar[str] = "kv_cache"

    args: QuantizationArgs = field(converter=cache_args)
    queries: bool = False

    def parts(self) -> tuple[AttentionPart, ...]:
        """What is rounded: keys, values, and queries if they are."""
        return tuple(_SCALES) if self.queries else ("keys", "values")

    def buffers(self) -> tuple[str, ...]:
        """`k_scale`, `v_scale`, and `q_scale` where queries are rounded."""
        return tuple(_SCALES[part] for part in self.parts())

    def buffer_shapes(self, module: nn.Module) -> Mapping[str, tuple[int, ...]] | None:
        """One number a tensor, or one for each head of keys, values or queries, as the configuration counts them."""
        if self.args.strategy == "tensor":
            return dict.fromkeys(self.buffers(), (1,))
        config: Any = getattr(module, "config", None)
        heads = getattr(config, "num_attention_heads", None)
        few = getattr(config, "num_key_value_heads", heads)
        if heads is None or few is None:
            return None
        return {_SCALES[part]: (heads if part == "queries" else few, 1, 1) for part in self.parts()}

    def describe(self, buffer: str) -> str:
        """What the scale is of, and how that is quantized."""
        what = "queries of attention" if buffer == _SCALES["queries"] else "KV cache"
        return f"{what}: {self.args.type}{self.args.num_bits} {self.args.strategy}"

    def attention(self, module: nn.Module, states: AttentionStates) -> AttentionStates:
        """Round those that have a scale."""
        rounded = {part: self._rounded(module, part, getattr(states, part)) for part in self.parts()}
        return AttentionStates(**{"keys": states.keys, "values": states.values, "queries": states.queries, **rounded})

    def _rounded(self, module: nn.Module, part: AttentionPart, x: Tensor) -> Tensor:
        scale: Tensor = getattr(module, _SCALES[part])
        return fake_quantize_straight_through(x, scale.to(x.device), None, self.args)


@frozen(kw_only=True, eq=False)
class CacheQuantizer(Modifier):
    """Quantize keys and values, and the queries of some classes of attention, where attention runs.

    Attributes:
        args: how; the observer is `minmax` where none is named.
        queries: names of classes of attention modules whose queries are quantized too.
        propagated_error: calibrate on keys and values of compressed layers, as the quantizer of layers does that this
            one stands beside.
    """

    traits: ClassVar[frozenset[str]] = frozenset({QUANTIZES, RUNS_LAST})

    targets: list[str] = field(factory=list, converter=names)
    args: QuantizationArgs = field(converter=cache_args)
    queries: list[str] = field(factory=list)
    propagated_error: bool = False

    def needs(self) -> Needs:
        """Data, and batches as they are: ranges are averaged over them."""
        return Needs(data=True, propagated_error=self.propagated_error, batch_boundaries=True)

    def observes(self, stage: Stage) -> list[str]:
        """Attention."""
        return [name for name, _ in self.attachments(stage)]

    def attachments(self, stage: Stage) -> Sequence[tuple[str, KVCache]]:
        """The rounding of every attention of a stage."""
        return [
            (name, KVCache(args=self.args, queries=type(module).__name__ in self.queries))
            for name, module in attention_modules(stage.modules)
        ]

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Request what scales are made of.

        Raises:
            TargetError: a class of attention is not there; says which are.
            ModelError: transformers dispatches no attention of the model.
        """
        _check_queries(state.model, self.queries)
        for name, cache in self.attachments(stage):
            for point in _points(stage, name, cache):
                state.request(point, _observed(cache))

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Give scales to every attention that has run, and round there from now on.

        Raises:
            CalibrationError: this is the last stage, and no attention has run.
        """
        model: Any = state.model
        for name, cache in self.attachments(stage):
            observed = _observed(cache)
            seen = [state.statistic(point, observed) for point in _points(stage, name, cache)]
            if any(value is None for value in seen):
                log.warning("%s ran for no batch, so its keys and values are not quantized", name)
                continue
            ranges = (observed.observer.range(value) for value in seen)
            scales = (calculate_qparams(*ends, cache.args)[0].to(model.dtype) for ends in ranges)
            state.attach(name, cache, dict(zip(cache.buffers(), scales, strict=True)))
        *_, last = find_layers(model.named_modules())
        found = every_attachment(model.named_modules())
        if last.name in stage.modules and not any(isinstance(one, KVCache) for _, _, one in found):
            raise CalibrationError("kv_cache_scheme: no attention ran while data were seen")


def _check_queries(model: nn.Module, queries: Sequence[str]) -> None:
    known = sorted({type(module).__name__ for _, module in attention_modules(dict(model.named_modules()))})
    if not known:
        raise ModelError(
            f"{type(model).__name__} has no attention that transformers dispatches: "
            "its keys and values cannot be quantized"
        )
    for name in sorted(set(queries).difference(known)):
        raise TargetError(f"no module of this model is a {name!r}; its attention is {', '.join(known)}")


def _points(stage: Stage, name: str, cache: KVCache) -> Iterator[AttentionInput]:
    for part in cache.parts():
        yield AttentionInput(name, stage.modules[name], part)


def _observed(cache: KVCache) -> Observed:
    return Observed(observer=observer_for(cache.args, DEFAULT_ACTIVATION_OBSERVER))
