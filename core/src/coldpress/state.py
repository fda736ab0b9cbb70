"""State: everything that changes during a run, handed from hook to hook."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Literal

import torch
from attrs import asdict, define, field, frozen
from torch import Tensor, nn

from coldpress.calibration.store import StatisticStore
from coldpress.errors import CalibrationError
from coldpress.numerics import check_finite, dequantize
from coldpress.schemes import Scheme, describe
from coldpress.stage import Layer
from coldpress.statistic import Statistic

Status = Literal["quantized", "changed", "fallback", "untouched"]


@frozen(eq=False)
class Quantized:
    """A layer as a checkpoint keeps it; the shapes of scales follow the strategy of the scheme.

    Attributes:
        scheme: how weights and inputs are quantized.
        codes: points of the number format's grid, [O, I]; None when only the inputs are quantized.
        scale: of the weights.
        zero_point: of the weights, the shape of `scale`; zeros when symmetric.
        global_scale: of the weights' scales, [1].
        input_scale: of static inputs.
        input_zero_point: of static inputs, the shape of `input_scale`.
        input_global_scale: of the inputs' scales, [1].
    """

    scheme: Scheme
    codes: Tensor | None = None
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    global_scale: Tensor | None = None
    input_scale: Tensor | None = None
    input_zero_point: Tensor | None = None
    input_global_scale: Tensor | None = None

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The weights that the codes stand for, [O, I], computed in the wider of this dtype and that of the scales."""
        assert self.scheme.weights is not None
        assert self.codes is not None
        assert self.scale is not None
        scale = self.scale.to(torch.promote_types(self.scale.dtype, dtype))
        return dequantize(
            self.codes, scale, self.zero_point, self.scheme.weights, dtype=dtype, global_scale=self.global_scale
        )


@define
class LayerReport:
    """What became of one layer.

    Attributes:
        name: from the root of the model.
        kind: class of the module.
        shape: of the weight, (O, I).
        status: quantized, changed (pruned, smoothed), fallback (not as asked, see `reason`) or untouched.
        reason: why it is untouched or fell back.
        scheme: in words, e.g. `int4 group 64`.
        weight_error: size of the change over the size of the weight (Frobenius norms); None when not measured.
        sparsity: share of weights that are zero; None when not measured.
        seconds: spent on this layer.
        notes: what a modifier adds.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    status: Status = "untouched"
    reason: str | None = None
    scheme: str | None = None
    weight_error: float | None = None
    sparsity: float | None = None
    seconds: float = 0.0
    notes: dict[str, Any] = field(factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The line as `report.json` has it."""
        return asdict(self)


class Scratch:
    """What modifiers remember between hooks, by modifier and layer."""

    def __init__(self) -> None:
        self._values: dict[tuple[int, str], Any] = {}

    def __setitem__(self, key: tuple[Any, Layer], value: Any) -> None:
        self._values[id(key[0]), key[1].name] = value

    def __getitem__(self, key: tuple[Any, Layer]) -> Any:
        return self._values[id(key[0]), key[1].name]

    def __contains__(self, key: tuple[Any, Layer]) -> bool:
        return (id(key[0]), key[1].name) in self._values

    def __len__(self) -> int:
        return len(self._values)

    def pop(self, modifier: Any, layer: Layer) -> Any:
        """The value, which is forgotten."""
        return self._values.pop((id(modifier), layer.name))


@define(eq=False)
class State:
    """Everything that changes during a run.

    Attributes:
        model: what is compressed, in place.
        tokenizer: or processor, saved with the model; may be None.
        batches: calibration data, keyword arguments of the model each.
        seed: of everything random.
        observed: names of the layers whose inputs somebody reads; what comes after the last of them need not run.
        follows_error: whether somebody makes use of seeing what compressed stages put out, and not the original.
        compares: whether somebody asks what inputs are in the original model.
        pipeline_state: what the pipeline remembers between two stages; nobody else's business.
        scratch: what modifiers remember between hooks.
        statistics: of the stage's inputs; read and written by the methods below.
        quantized: layer name to its codes and scales, until they are written.
        schemes: layer name to scheme, of every layer quantized so far.
        planned: layer name to the modifier of the recipe that quantizes it, of every layer that one does.
        clip_ranges: layer name to the range that scales of its weight shall cover, both [*scale shape].
        report: layer name to what became of it, every layer of the model.
        log: what was done, one entry a stage.
    """

    model: nn.Module
    tokenizer: Any = None
    batches: Sequence[Mapping[str, Any]] = ()
    seed: int = 0
    observed: frozenset[str] = frozenset()
    follows_error: bool = True
    compares: bool = False
    pipeline_state: Any = None
    scratch: Scratch = field(factory=Scratch)
    statistics: StatisticStore = field(factory=StatisticStore)
    quantized: dict[str, Quantized] = field(factory=dict)
    schemes: dict[str, Scheme] = field(factory=dict)
    planned: Mapping[str, Any] = field(factory=dict)
    clip_ranges: dict[str, tuple[Tensor, Tensor]] = field(factory=dict)
    report: dict[str, LayerReport] = field(factory=dict)
    log: list[dict[str, Any]] = field(factory=list)

    def request(self, layer: Layer, which: str | Statistic) -> None:
        """In `initialize`: wish for a statistic of the layer's inputs, by name or with settings."""
        self.statistics.request(layer, which)

    def statistic(self, layer: Layer, which: str | Statistic) -> Any | None:
        """In `finalize`: what was seen, the same object for layers that share an input; None when no token came."""
        return self.statistics.value(layer, which)

    def require(self, layer: Layer, which: str | Statistic) -> Any:
        """The same as `statistic`; a layer that no token reached is a CalibrationError."""
        value = self.statistic(layer, which)
        if value is None:
            raise CalibrationError(
                f"no token of the calibration data reached {layer.name}; calibrate with more data, or ignore the layer"
            )
        return value

    def input_groups(self, layers: Iterable[Layer]) -> list[list[Layer]]:
        """In `finalize`: the layers in groups that read the same input, and so share their statistics."""
        return self.statistics.input_groups(layers)

    def carry(self, layers: Sequence[Layer], *, rescale: Tensor | None = None, rotate: Tensor | None = None) -> None:
        """In `finalize`: say that the inputs x of these layers are now x / rescale, [I], or x @ rotate, [I, I].

        Statistics follow, or are collected anew before a later modifier reads them.
        """
        if rescale is not None:
            self.statistics.rescale(layers, rescale)
        if rotate is not None:
            self.statistics.rotate(layers, rotate)

    def set_quantized(self, layer: Layer, quantized: Quantized) -> None:
        """Make `quantized` what the layer is: write the weights it stands for, measure and report the change."""
        if quantized.codes is not None:
            self.set_weight(layer, quantized.weight(layer.weight.dtype))
        line = self.report[layer.name]
        line.status, line.scheme = "quantized", describe(quantized.scheme)
        self.quantized[layer.name] = quantized
        self.schemes[layer.name] = quantized.scheme

    def set_weight(self, layer: Layer, weight: Tensor) -> None:
        """Write `weight`, [O, I], into the layer, measure and report the change.

        Raises:
            NumericsError: the new weight is not finite.
        """
        check_finite(f"{layer.name}.weight, compressed,", weight)
        old = layer.weight
        line = self.report[layer.name]
        line.status = "changed"
        line.weight_error = relative_error(old, weight)
        line.sparsity = 1 - weight.count_nonzero().item() / weight.numel()
        old.copy_(weight)
        self.clip_ranges.pop(layer.name, None)

    def skip(self, layer: Layer, reason: str) -> None:
        """Say that a claimed layer is left alone on purpose, and why."""
        self.report[layer.name].status, self.report[layer.name].reason = "untouched", reason

    def fall_back(self, layer: Layer, reason: str) -> None:
        """Say that a layer was compressed in another way than asked, and why; call it after the weight is set."""
        self.report[layer.name].status, self.report[layer.name].reason = "fallback", reason

    @contextmanager
    def timed(self, *layers: Layer) -> Iterator[None]:
        """Add the seconds spent inside to the reports of the layers, in equal parts."""
        start = perf_counter()
        yield
        for layer in layers:
            self.report[layer.name].seconds += (perf_counter() - start) / len(layers)


def relative_error(old: Tensor, new: Tensor) -> float:
    """Frobenius norm of the change over that of `old`; 0 for two matrices of zeros."""
    size = torch.linalg.vector_norm(old, dtype=torch.float32)
    change = torch.linalg.vector_norm(old.float() - new)  # never in place: `old.float()` may be `old`
    return float(change / size) if size > 0 else float(change)
