"""State: everything that changes during a run, handed from hook to hook."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeVar, cast

import torch
from attrs import define, evolve, field
from torch import Tensor, nn

from coldpress.attachment import Attachment, attach
from coldpress.distributed import WHOLE, Share
from coldpress.errors import BrokenPluginError, CalibrationError
from coldpress.layer_report import LayerReport
from coldpress.modifier import TRANSFORMS, Modifier
from coldpress.numerics import check_finite, overwrite, relative_error
from coldpress.numerics.zeros import count_zeros
from coldpress.originals import Originals
from coldpress.planned import CallSource, Planned, Running, Sweep, no_calls, unknown_nbytes
from coldpress.quantized import Encoding, Quantized
from coldpress.routed import Observed
from coldpress.schemes import Scheme, describe
from coldpress.scratch import Scratch
from coldpress.stage import Call, Layer, Stage, calls_inside
from coldpress.statistic import Statistic, Statistics
from coldpress.written import Written

T = TypeVar("T")


@define(eq=False)
class State:
    """Everything that changes during a run.

    Attributes:
        model: what is compressed, in place.
        tokenizer: or processor, saved with the model; may be None.
        batches: calibration data, keyword arguments of the model each.
        calibration: what these hold, for the report; None where no data are read.
        share: which of the batches this process runs, and the processes beside it.
        seed: of everything random.
        scale_dtype: of stored scales where weights are read wider, as decoded ones are; None for that of each weight.
        sweep: what the pass over the stages is for.
        plan: layer name to quantizer and scheme, of every layer that will be quantized.
        stored_nbytes: bytes of the tensors that the checkpoint will hold of a layer by a scheme.
        running: the hook that is running; None between hooks.
        pipeline_state: what the pipeline remembers between two stages; the pipeline's own.
        scratch: what modifiers remember between hooks.
        quantized: layer name to its codes and scales, until they are written.
        schemes: layer name to scheme, of every layer quantized so far.
        global_scales: layer name to the global scale of its weight, [1], and the versions of the weights that it is of.
        clip_ranges: layer name to the range that scales of its weight shall cover, low and high, [*scale shape] both.
        report: layer name to what became of it, every layer of the model.
        log: what was done, one entry a stage.
        written: which weights are those that were last checked, reported and encoded.
        originals: what the stage was before it was compressed, where that is kept; see `original_weight`.
        compressed: names of the layers that have another weight than an equivalent transformation gives them.
        handled: names of the layers that the running hook has written, skipped or reported.
    """

    model: nn.Module
    tokenizer: Any = None
    batches: Sequence[Mapping[str, Any]] = ()
    calibration: Mapping[str, Any] | None = None
    share: Share = WHOLE
    seed: int = 0
    scale_dtype: torch.dtype | None = None
    sweep: Sweep = field(factory=Sweep)
    plan: dict[str, Planned] = field(factory=dict)
    stored_nbytes: Callable[[Layer, Scheme], int] = unknown_nbytes
    running: Running | None = None
    pipeline_state: Any = None
    scratch: Scratch = field(factory=Scratch)
    quantized: dict[str, Quantized] = field(factory=dict)
    schemes: dict[str, Scheme] = field(factory=dict)
    global_scales: dict[str, tuple[Tensor, Mapping[str, int]]] = field(factory=dict)
    clip_ranges: dict[str, tuple[Tensor, Tensor]] = field(factory=dict)
    report: dict[str, LayerReport] = field(factory=dict)
    log: list[dict[str, Any]] = field(factory=list)
    written: Written = field(factory=Written)
    originals: Originals | None = None
    compressed: set[str] = field(factory=set)
    handled: set[str] = field(factory=set)
    _ranges: dict[str, Any] = field(factory=dict)
    _statistics: Statistics | None = None
    _call_source: CallSource = no_calls
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
        """What a class or function, such as `FusedLayers`, finds out about the model, asked once a run."""
        if kind not in self._facts:
            self._facts[kind] = kind(self.model)
        return cast(T, self._facts[kind])

    def forget_facts(self) -> None:
        """The model has other layers now; core's business."""
        self._facts.clear()

    def note_decision(self, modifier: Modifier, value: Any) -> None:
        """Keep what a modifier decided; core's business."""
        self._decisions[id(modifier)] = value

    def begin_hook(self, running: Running) -> None:
        """Say which hook runs from now on; core's business."""
        self.running, self.handled, self._ranges = running, set(), dict(self.clip_ranges)

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

    def request(self, layer: Observed, which: str | Statistic) -> None:
        """In `initialize`: request a statistic of the layer's inputs, by name or with settings."""
        if self.running is not None and self.running.hook != "initialize":
            raise self._refusal(layer, f"{which!r} is requested too late: call state.request in initialize")
        self.statistics.request(layer, which)

    def statistic(self, layer: Observed, which: str | Statistic) -> Any | None:
        """In `finalize`: what was seen, the same object for layers that share an input; None when no token came."""
        return self.statistics.value(layer, which)

    def require(self, layer: Observed, which: str | Statistic) -> Any:
        """The same as `statistic`; a layer that no token reached is a CalibrationError."""
        value = self.statistic(layer, which)
        if value is None:
            none = f"no token of the calibration data reached {layer.name}"
            raise CalibrationError(f"{none}; calibrate with more data, or ignore the layer")
        return value

    def take(self, layers: Sequence[Layer], which: str | Statistic) -> Any:
        """`require`, of layers that share an input and for the last time: forgotten, unless others asked for it."""
        value = self.require(layers[0], which)
        self.statistics.take([layer.name for layer in layers], which)
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
        `state.original()`, the original ones.  One batch at a time is where the model is: what a call holds is put
        aside with the next one, so a modifier that keeps calls keeps them with tensors of its own (`x.detach()`).

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
            BrokenPluginError: the modifier does not say that it needs original weights.
        """
        weight = self._kept().weight(layer)
        if weight is None:
            raise self._refusal(layer, "it is no layer of the stage, so its original weight is not kept")
        return weight

    @contextmanager
    def original(self) -> Iterator[None]:
        """Inside, the stage is as before it was compressed, without later attachments; `Call.run` gives its outputs."""
        with self._kept().swapped():
            yield

    def transform_original(self, apply: Callable[[], None]) -> None:
        """After an equivalent transformation, in place, of the stage as it is: do the same to what is kept of it."""
        if self.originals is not None:
            self.originals.transform(apply)

    def _kept(self) -> Originals:
        if self.originals is None or (self.running and not self.running.modifier.needs().original_weights):
            raise BrokenPluginError(
                f"{self.running or 'a modifier'} reads original weights: its needs() must say original_weights=True"
            )
        return self.originals

    # --- what it becomes

    def set_quantized(self, layer: Layer, quantized: Quantized) -> None:
        """Make `quantized` what the layer is: write the weights it stands for, measure and report the change.

        Raises:
            BrokenPluginError: codes, scales or zero points are not what the scheme implies, or the scheme is not the
                planned one.
            NumericsError: the new weight is not finite; rows before those that are named are written.
        """
        self._check_writable(layer)
        planned = self.plan.get(layer.name)
        if self.running is not None and (planned is None or planned.scheme != quantized.scheme):
            expected = "none" if planned is None else describe(planned.scheme)
            raise self._refusal(
                layer,
                f"the scheme is {describe(quantized.scheme)}, and the planned one is {expected}: take "
                "state.scheme_of(layer), which scheme_for and Decision.schemes say before the run",
            )
        try:
            quantized.check(tuple(layer.weight.shape))
        except ValueError as error:
            raise self._refusal(layer, str(error)) from error
        self.quantized.pop(layer.name, None)
        self.written.forget_codes(layer)
        if quantized.codes is not None:
            self._overwrite(layer, quantized.rows(layer.weight.dtype))
        self.handled.add(layer.name)
        self.report[layer.name].become("quantized", scheme=describe(quantized.scheme))
        self._encode(layer, quantized)
        self.schemes[layer.name] = quantized.scheme

    def set_weight(self, layer: Layer, weight: Tensor) -> None:
        """Write `weight`, [O, I], into the layer, measure and report the change.

        The codes of a layer that is quantized follow where they can stand for the new weight.

        Raises:
            BrokenPluginError: the weight is not floating-point or of another shape, the layer may not be written now,
                or the codes of an earlier modifier cannot stand for the weight.
            NumericsError: the new weight is not finite.
        """
        self._check_writable(layer)
        if weight.shape != (shape := layer.weight.shape):
            raise self._refusal(layer, f"the weight has the shape {tuple(weight.shape)}, not {tuple(shape)}")
        if not weight.is_floating_point():
            raise self._refusal(layer, f"the weight is {weight.dtype}, not floating-point")
        self._overwrite(layer, [(slice(None), weight)])

    def note_change(self, layer: Layer) -> None:
        """Check, measure and report a weight that a hook has changed in place; core's business."""
        if self.running is None or TRANSFORMS not in self.running.modifier.traits:
            self.compressed.add(layer.name)
        check_finite(f"{layer.name}.weight", layer.weight, cause=f"made by {self.running or 'a modifier'}")
        if self.clip_ranges.get(layer.name) is self._ranges.get(layer.name):  # not chosen by this hook
            self.clip_ranges.pop(layer.name, None)
        original = self._first_weight(layer) if layer.name in self.compressed else None
        self._note(layer, None if original is None else relative_error(original, layer.weight))

    def attach(self, where: Layer | str, attachment: Attachment, buffers: Mapping[str, Tensor] | None = None) -> None:
        """Put an attachment on a layer, or a module by its name, in place of one of its kind.

        It is one that `Modifier.announced` said before; the tensors that it names become buffers of the module.
        """
        name = where if isinstance(where, str) else where.name
        module = self.model.get_submodule(name)
        if self.running is not None:
            announced = self.running.modifier.announced(self, self.running.stage)
            if (name, attachment.kind) not in {(owner, one.kind) for owner, one in announced}:
                raise BrokenPluginError(
                    f"{self.running} attaches {attachment.kind!r} to {name}: its attachments() must announce that"
                )
            if TRANSFORMS in self.running.modifier.traits and self.originals is not None:
                self.originals.attach(module, attachment)
        attach(module, attachment, buffers)

    def skip(self, layer: Layer, reason: str) -> None:
        """Say that a claimed layer is left alone on purpose, and why."""
        self.handled.add(layer.name)
        line = self.report[layer.name]
        if line.status == "untouched":
            line.reason = reason
        else:  # by this modifier only
            line.remark(reason)

    def fall_back(self, layer: Layer, reason: str) -> None:
        """Say that a layer was compressed in another way than asked, and why; call it after the weight is set."""
        self.handled.add(layer.name)
        self.report[layer.name].become("fallback", reason=reason)

    def _overwrite(self, layer: Layer, rows: Iterable[tuple[slice, Tensor]]) -> None:
        """Write a new weight, check, measure and report it; the error is to the weight before it was compressed."""
        original = self._first_weight(layer) if layer.name in self.compressed else layer.weight
        name, cause = f"{layer.name}.weight", f"made by {self.running or 'a modifier'}"
        error = overwrite(layer.weight, rows, original=original, name=name, cause=cause)
        self.compressed.add(layer.name)
        self.clip_ranges.pop(layer.name, None)
        self._note(layer, error)

    def _note(self, layer: Layer, error: float | None) -> None:
        """Report the layer's new weight; its codes, if it has some, follow."""
        self._encode_anew(layer)
        self.handled.add(layer.name)
        line, weight = self.report[layer.name], layer.weight
        if layer.name in self.compressed:
            line.become("quantized" if layer.name in self.quantized else "changed")
        elif line.status == "untouched":  # a reason says why no more was done to it
            line.status = "changed"
        line.weight_error = error
        line.sparsity = 1 - (weight.numel() - count_zeros(weight)) / weight.numel()
        self.written.note(layer)

    def _check_writable(self, layer: Layer) -> None:
        """Refuse to write in a hook that may not, and layers of other stages."""
        if (running := self.running) is None:
            return
        if not running.may_change_weights():
            raise self._refusal(layer, "weights are changed in finalize only (by the trait TRANSFORMS in initialize)")
        if running.stage.modules.get(layer.name) is not layer.module:
            raise self._refusal(layer, f"it is no layer of {running.stage.name}, and only these are changed")
        if self.originals is not None and self.originals.active:
            raise self._refusal(layer, "inside of state.original() nothing is written")

    def _first_weight(self, layer: Layer) -> Tensor | None:
        """The layer's weight before it was compressed, [O, I]; None when that is not kept."""
        kept = self.originals
        return None if kept is None or layer.name in kept.compressed else kept.weight(layer)

    def _encode_anew(self, layer: Layer) -> None:
        """Let the codes of a quantized layer stand for the weight that it has now."""
        found = self.quantized.get(layer.name)
        if found is None or found.codes is None:
            return
        again = Encoding.of(found, layer.weight).encode(layer.weight)
        if again is None:
            by = self.quantizer_of(layer)
            first = "an earlier modifier" if by is None else type(by).__name__
            why = f"its codes, which {first} made, cannot stand for the new weight"
            raise self._refusal(
                layer, f"{why}: let the recipe name {first} after it, or write codes by state.set_quantized"
            )
        self._encode(layer, again)

    def _encode(self, layer: Layer, quantized: Quantized) -> None:
        """Keep codes, and what the weight is that they stand for."""
        self.quantized[layer.name] = quantized
        if quantized.codes is not None:
            self.written.note_codes(layer)

    def _refusal(self, layer: Observed, what: str) -> BrokenPluginError:
        return BrokenPluginError(f"{self.running or 'a modifier'}: {layer.name}: {what}")

    @contextmanager
    def timed(self, *layers: Layer) -> Iterator[None]:
        """Add the seconds spent inside to the reports of the layers, in equal parts."""
        start = perf_counter()
        yield
        for layer in layers:
            self.report[layer.name].seconds += (perf_counter() - start) / len(layers)
