"""State: everything that changes during a run, handed from hook to hook."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeVar, cast

import torch
from attrs import define, evolve, field
from torch import Tensor, nn

from coldpress.attachment import Attachment, attach, attachments_as, attachments_on
from coldpress.attention import AttentionInput
from coldpress.errors import BrokenPluginError, CalibrationError
from coldpress.layer_report import LayerReport
from coldpress.modifier import TRANSFORMS, Modifier
from coldpress.numerics import check_finite
from coldpress.plan import CallSource, Planned, Running, Sweep, no_calls
from coldpress.quantized import Quantized
from coldpress.schemes import Scheme, describe
from coldpress.stage import Call, Layer, Stage, calls_inside, oriented
from coldpress.statistic import Statistic, Statistics

T = TypeVar("T")


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
        calibration: what these hold, for the report; None where no data are read.
        seed: of everything random.
        sweep: what the pass over the stages is for.
        plan: layer name to quantizer and scheme, of every layer that will be quantized.
        running: the hook that is running; None between hooks.
        pipeline_state: what the pipeline remembers between two stages; the pipeline's own.
        scratch: what modifiers remember between hooks.
        quantized: layer name to its codes and scales, until they are written.
        schemes: layer name to scheme, of every layer quantized so far.
        global_scales: layer name to the global scale of its weight, [1], and the versions of the weights that it is of.
        clip_ranges: layer name to the range that scales of its weight shall cover, low and high, [*scale shape] both.
        report: layer name to what became of it, every layer of the model.
        log: what was done, one entry a stage.
    """

    model: nn.Module
    tokenizer: Any = None
    batches: Sequence[Mapping[str, Any]] = ()
    calibration: Mapping[str, Any] | None = None
    seed: int = 0
    sweep: Sweep = field(factory=Sweep)
    plan: dict[str, Planned] = field(factory=dict)
    running: Running | None = None
    pipeline_state: Any = None
    scratch: Scratch = field(factory=Scratch)
    quantized: dict[str, Quantized] = field(factory=dict)
    schemes: dict[str, Scheme] = field(factory=dict)
    global_scales: dict[str, tuple[Tensor, Mapping[str, int]]] = field(factory=dict)
    clip_ranges: dict[str, tuple[Tensor, Tensor]] = field(factory=dict)
    report: dict[str, LayerReport] = field(factory=dict)
    log: list[dict[str, Any]] = field(factory=list)
    _statistics: Statistics | None = None
    _call_source: CallSource = no_calls
    _originals: dict[str, tuple[nn.Parameter, Tensor]] | None = None
    _original_attachments: dict[nn.Module, tuple[Attachment, ...]] = field(factory=dict)
    _decisions: dict[int, Any] = field(factory=dict)
    _facts: dict[Any, Any] = field(factory=dict)

    # --- what is known before a stage runs

    def scheme_of(self, layer: Layer) -> Scheme | None:
        """How the layer will be quantized; None when it will not."""
        planned = self.plan.get(layer.name)
        return None if planned is None else planned.scheme

    def quantizer_of(self, layer: Layer) -> Modifier | None:
        """The modifier of the recipe that will quantize the layer."""
        planned = self.plan.get(layer.name)
        return None if planned is None else planned.quantizer

    def decision(self, modifier: Modifier) -> Any:
        """What the modifier decided after its measuring pass (`Decision.value`); None before."""
        return self._decisions.get(id(modifier))

    def fact(self, kind: Callable[[nn.Module], T]) -> T:
        """Something that is found out about the model once a run, at its first use, such as `FusedLayers`.

        Args:
            kind: a class or function; it is called with the model, and the same one returns the same result.
        """
        if kind not in self._facts:
            self._facts[kind] = kind(self.model)
        return cast(T, self._facts[kind])

    def note_decision(self, modifier: Modifier, value: Any) -> None:
        """Keep what a modifier decided; core's business."""
        self._decisions[id(modifier)] = value

    def begin_pass(self, sweep: Sweep, statistics: Statistics, call_source: CallSource) -> None:
        """Say what a pass over the stages is for, and where its statistics and calls come from; core's business."""
        self.sweep, self._statistics, self._call_source = sweep, statistics, call_source

    # --- what the stage is called with

    @property
    def statistics(self) -> Statistics:
        """Of the stage that is calibrated; the methods below read and write them."""
        if self._statistics is None:
            raise BrokenPluginError("statistics are there while a stage is compressed, and none is")
        return self._statistics

    def request(self, layer: Layer | AttentionInput, which: str | Statistic) -> None:
        """In `initialize`: request a statistic of the layer's inputs, by name or with settings."""
        self.statistics.request(layer, which)

    def statistic(self, layer: Layer | AttentionInput, which: str | Statistic) -> Any | None:
        """In `finalize`: what was seen, the same object for layers that share an input; None when no token came."""
        return self.statistics.value(layer, which)

    def require(self, layer: Layer | AttentionInput, which: str | Statistic) -> Any:
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

    def rescale_inputs(self, layers: Sequence[Layer], scale: Tensor) -> None:
        """After an equivalent transformation: the inputs x of these layers are now x / scale, scale [I].

        Statistics follow, or are collected anew before a later modifier reads them.
        """
        self.statistics.rescale(layers, scale)

    def rotate_inputs(self, layers: Sequence[Layer], rotation: Tensor) -> None:
        """After an equivalent transformation: the inputs x of these layers are now x @ rotation, rotation [I, I]."""
        self.statistics.rotate(layers, rotation)

    def calls(
        self,
        stage: Stage,
        module: str | None = None,
        *,
        original: bool = False,
        batches: Collection[int] | None = None,
    ) -> Iterator[Call]:
        """What the model calls the stage with, or a module of it, batch by batch; `Call.run` runs it again.

        Outputs are those of the weights as they are when a call is run: compressed so far, or, inside of
        `state.original()`, the original ones.  One batch at a time is where the model is; a call is not kept
        beyond the next one, except one of a module, whose arguments were computed for it.

        Args:
            stage: that is compressed now.
            module: full name of a module of it; None for the stage itself.
            original: called with the outputs of the original blocks before the stage, not of the compressed ones.
            batches: indices of the batches that are wanted; None for all.

        Raises:
            CalibrationError: the pipeline holds no calls of this stage: it is no block and not the whole model.
        """
        inside = module is not None and module != stage.name
        for whole in self._call_source(stage, original=original, batches=batches):
            for call in calls_inside(whole, stage.modules[str(module)]) if inside else (whole,):
                yield call if self.sweep.gradients else evolve(call, forward=torch.no_grad()(call.forward))

    # --- what the stage was before it was compressed

    def original_weight(self, layer: Layer) -> Tensor:
        """The layer's weight before the stage was compressed, [O, I]; equivalent transformations act on it too.

        Raises:
            BrokenPluginError: no modifier says that it needs original weights.
        """
        return oriented(self._kept()[f"{layer.name}.weight"][1], layer.classes)

    @contextmanager
    def original(self) -> Iterator[None]:
        """Inside, the stage is as before it was compressed, without later attachments; `Call.run` gives its outputs."""
        kept = self._kept()
        current = {name: parameter.data for name, (parameter, _) in kept.items()}
        for parameter, before in kept.values():
            parameter.data = before
        try:
            with attachments_as(self._original_attachments):
                yield
        finally:
            for name, (parameter, _) in kept.items():
                parameter.data = current[name]

    def transform_original(self, apply: Callable[[], None]) -> None:
        """After an equivalent transformation, in place, of the stage as it is: do the same to what is kept of it."""
        if self._originals is not None:
            with self.original():
                apply()

    def keep_originals(self, stage: Stage) -> None:
        """Keep a copy of the parameters of a stage that is about to be compressed; core's business."""
        self._originals = {
            f"{name}.{part}" if name else part: (parameter, parameter.detach().clone())
            for name, module in stage.modules.items()
            for part, parameter in module.named_parameters(recurse=False)
        }
        self._original_attachments = {module: attachments_on(module) for module in stage.modules.values()}

    def drop_originals(self) -> None:
        """Forget them: the stage is compressed."""
        self._originals, self._original_attachments = None, {}

    def _kept(self) -> dict[str, tuple[nn.Parameter, Tensor]]:
        if self._originals is None:
            raise BrokenPluginError(
                f"{self.running or 'a modifier'} reads original weights: its needs() must say original_weights=True"
            )
        return self._originals

    # --- what it becomes

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

    def attach(self, where: Layer | str, attachment: Attachment, buffers: Mapping[str, Tensor] | None = None) -> None:
        """Put an attachment on a layer, or a module by its name, in place of one of its kind.

        It is one that `Modifier.attachments` announced; the tensors that it names become buffers of the module.
        """
        name = where if isinstance(where, str) else where.name
        module = self.model.get_submodule(name)
        if self.running is not None:
            announced = self.running.modifier.attachments(self.running.stage)
            if (name, attachment.kind) not in {(owner, one.kind) for owner, one in announced}:
                raise BrokenPluginError(
                    f"{self.running} attaches {attachment.kind!r} to {name}: its attachments() must announce that"
                )
            if TRANSFORMS in self.running.modifier.traits and module in self._original_attachments:
                rest = (one for one in self._original_attachments[module] if one.kind != attachment.kind)
                self._original_attachments[module] = (*rest, attachment)
        attach(module, attachment, buffers)

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
