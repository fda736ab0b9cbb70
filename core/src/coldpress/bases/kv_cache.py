"""KV cache and attention, for modifiers: keys, values and queries are watched while data run, and rounded afterwards.

initialize    watch_cache      keys and values of every attention are observed, and queries of some
finalize      quantize_cache   those that have run get scales, and are rounded from now on
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from attrs import frozen
from torch import Tensor

from coldpress.arguments import DEFAULT_ACTIVATION_OBSERVER
from coldpress.calibration.attention import cache_watch, quantize_seen, rounded_caches, stop_watching, watch_caches
from coldpress.calibration.observer import observer_for
from coldpress.errors import CalibrationError, SchemeError, TargetError
from coldpress.schemes import QuantizationArgs, number_format
from coldpress.stage import Layer, Stage, find_layers
from coldpress.state import State
from coldpress.statistic import RESCALE, ROTATE, Statistic

_STRATEGIES = ("tensor", "attn_head")


@frozen(kw_only=True)
class Passed(Statistic):
    """How many tokens came by: requested so that data run."""

    supports: ClassVar[frozenset[str]] = frozenset({RESCALE, ROTATE})

    def update(self, value: int | None, x: Tensor) -> int:
        """Count the tokens, [T, I]."""
        return (value or 0) + len(x)

    def merge(self, a: int, b: int) -> int:
        """Add both."""
        return a + b

    def rescale(self, value: int, scale: Tensor) -> int:
        """They are as many."""
        return value

    def rotate(self, value: int, rotation: Tensor) -> int:
        """They are as many."""
        return value


def cache_args(value: Mapping[str, Any] | QuantizationArgs | None) -> QuantizationArgs | None:
    """The arguments of keys and values, from a table or as they are.

    Raises:
        SchemeError: keys and values cannot be quantized so; says how they can.
    """
    if value is None:
        return None
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


def watch_cache(state: State, layers: Iterable[Layer], args: QuantizationArgs, *, queries: Iterable[str] = ()) -> None:
    """In `initialize`: have keys and values observed in every attention that runs, and queries where it is asked for.

    Args:
        state: of the run.
        layers: of the stage; data run as far as the last of them, so one of them must come after the attention.
        args: of keys, values and queries; their observer is `minmax` where they name none.
        queries: names of classes of attention modules whose queries are quantized too.

    Raises:
        ModelError: attention of this model cannot be tapped.
        TargetError: the model has no module of such a class.
    """
    queries = frozenset(queries)
    present = {type(module).__name__ for module in state.model.modules()}
    for name in sorted(queries - present):
        known = sorted(kind for kind in present if kind.endswith("Attention"))
        raise TargetError(f"no module of this model is a {name!r}; its attention is {', '.join(known) or 'unknown'}")
    for layer in layers:
        if "Linear" in layer.classes:
            state.request(layer, Passed())
    if cache_watch(state.model) is None:
        watch_caches(state.model, observer_for(args, DEFAULT_ACTIVATION_OBSERVER), queries=queries)


def quantize_cache(state: State, stage: Stage) -> None:
    """In `finalize`: give scales to every attention that has run, and round its keys and values from now on.

    The scales are buffers of the attention modules, `k_scale`, `v_scale` and `q_scale`, and so are written with the
    stage.

    Raises:
        CalibrationError: this is the last stage, and an attention has not seen all data, or none has run.
    """
    watch = cache_watch(state.model)
    if watch is None:
        return
    model: Any = state.model
    quantize_seen(watch, model.dtype, calls=len(state.batches))
    *_, last = find_layers(state.model.named_modules())
    if last.name in stage.modules:
        stop_watching(state.model)
        if watch.seen:
            module = next(iter(watch.seen))
            raise CalibrationError(
                f"kv_cache_scheme: a {type(module).__name__} saw {watch.calls[module]} of {len(state.batches)} "
                "batches: "
                "data run as far as the last layer that is observed, so targets must include one after the attention"
            )
        if not any(rounded_caches(dict(state.model.named_modules()))):
            raise CalibrationError("kv_cache_scheme: no attention ran while data were seen")
