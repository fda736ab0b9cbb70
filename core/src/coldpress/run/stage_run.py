"""The hooks of one stage, modifier by modifier, with as few sweeps over the data as the recipe allows.

initialize of every modifier         equivalent transformations; statistics are requested
a sweep                              all that was requested is collected at once
finalize of every modifier           in between, another sweep where one reads what no longer holds
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from attrs import frozen

from coldpress.bases.quantized_inputs import quantize_inputs
from coldpress.calibration.batch import count_tokens
from coldpress.calibration.store import StatisticStore
from coldpress.calibration.tap import BatchInputs, InputTap
from coldpress.errors import BrokenPluginError, CalibrationError
from coldpress.experts import LinearExperts, TokenCount, observed_experts, report_unseen, watched_experts
from coldpress.models.heap import tidy_heap
from coldpress.modifier import TRANSFORMS, Modifier
from coldpress.originals import Originals
from coldpress.pipeline import Pipeline
from coldpress.planned import Running
from coldpress.report import Progress
from coldpress.run.hooks import Hooks
from coldpress.run.stage_checks import check_notes
from coldpress.run.watch import Watch
from coldpress.run.worst import StageHistograms
from coldpress.stage import Pass, Stage
from coldpress.state import State


@frozen(kw_only=True, eq=False)
class StageRun:
    """The work on a stage, after its weights are there.

    Attributes:
        modifiers: of this pass, in recipe order.
        hooks: where they are registered.
        state: what they are handed.
        store: collects their statistics.
        pipeline: runs the stage on the batches.
        progress: what a person sees meanwhile.
    """

    modifiers: Sequence[Modifier]
    hooks: Hooks
    state: State
    store: StatisticStore
    pipeline: Pipeline
    progress: Progress

    def compress(self, stage: Stage) -> None:
        """Fire `initialize`, `calibrate_batch` and `finalize`, for each of its parts; then the stage is compressed.

        Raises:
            CalibrationError: the stage must be swept again, and the pipeline cannot.
        """
        divided = self.pipeline.parts(self.state, stage) if self._is_divisible(stage) else (stage,)
        with closing(generator(divided)) as parts:
            for part in parts:
                self._compress(part)
                for layer in part.every_layer:
                    if layer.name in self.state.quantized:
                        quantize_inputs(layer.module, self.state.quantized[layer.name])

    def measure(self, stage: Stage) -> list[Any]:
        """Fire `initialize` and `calibrate_batch`, and ask every modifier of this pass to measure the stage."""
        try:
            self._initialize_all(stage)
            self._sweep(stage, self.modifiers, self.hooks.reading_batches(self.modifiers))
            return [self._measure(modifier, stage) for modifier in self.modifiers]
        finally:
            self._clear()

    def _is_divisible(self, stage: Stage) -> bool:
        """Whether parts of a stage may be compressed before others have seen a batch."""
        return is_divisible(self.modifiers, stage)

    def _compress(self, stage: Stage) -> None:
        try:
            known = {layer.name: set(self.state.report[layer.name].notes) for layer in stage.every_layer}
            histograms = StageHistograms.of(one for modifier in self.modifiers for one in modifier.layers(stage))
            self._initialize_all(stage)
            self._keep_originals(stage)
            swept = self._sweep(stage, self.modifiers, self.hooks.reading_batches(self.modifiers), histograms)
            for position, modifier in enumerate(self.modifiers):
                if self._is_stale(modifier, stage):
                    self._sweep_again(stage, self.modifiers[position:], swept)
                self._finalize(modifier, stage)
            report_unseen(self.state, stage.every_layer)
            check_notes(self.state.report, known, self.modifiers)
            histograms.gather(self.state.share.ranks)
            histograms.keep(self.state.report)
        finally:
            self._clear()

    def _clear(self) -> None:
        self.store.clear()
        self.state.originals = None

    def _measure(self, modifier: Modifier, stage: Stage) -> Any:
        watch = Watch.of(stage)
        with self.hooks.running(Running(modifier, "measure", stage), self.state) as running:
            found = modifier.measure(self.state, stage)
            watch.settle(self.state, running)
        return found

    def _initialize_all(self, stage: Stage) -> None:
        for modifier in self.modifiers:
            self._initialize(modifier, stage)

    def _initialize(self, modifier: Modifier, stage: Stage) -> None:
        with self.store.requesting(modifier):
            self.hooks.fire("initialize", modifier, self.state, stage)

    def _finalize(self, modifier: Modifier, stage: Stage) -> None:
        """Fire the hook; a transformation that does not say what becomes of inputs costs what was collected."""
        watch, kept = Watch.of(stage), self.state.originals
        transformed = 0 if kept is None else kept.transformed
        self.store.followed = False
        self.hooks.fire("finalize", modifier, self.state, stage, watch=watch)
        if TRANSFORMS not in modifier.traits or not watch.changed():
            return
        if not self.store.followed:
            self.store.lose()
        if kept is not None and kept.transformed == transformed:
            self._lose_originals(modifier, stage)

    def _keep_originals(self, stage: Stage) -> None:
        """Copy what modifiers need of the stage as it is, or what errors of layers that are written twice refer to."""
        needed = any(modifier.needs().original_weights for modifier in self.modifiers)
        names = (
            None if needed or any(TRANSFORMS in one.traits for one in self.modifiers) else self._written_twice(stage)
        )
        if needed or self._written_twice(stage):
            self.state.originals = Originals.of(stage, names, compressed=self.state.compressed)

    def _written_twice(self, stage: Stage) -> set[str]:
        """Layers that more than one modifier may give another weight, not counting equivalent transformations."""
        names = Counter(
            layer.name
            for modifier in self.modifiers
            for layer in modifier.layers(stage)
            if TRANSFORMS not in modifier.traits or modifier.scheme_for(layer) is not None
        )
        return {name for name, count in names.items() if count > 1}

    def _lose_originals(self, modifier: Modifier, stage: Stage) -> None:
        """A transformation did not say what becomes of what is kept of the stage.

        Raises:
            BrokenPluginError: a layer is compressed already, and a modifier needs its original weight.
        """
        later = self.modifiers[[one is modifier for one in self.modifiers].index(True) + 1 :]
        needy = [type(one).__name__ for one in later if one.needs().original_weights]
        if not any(layer.name in self.state.compressed for layer in stage.every_layer):
            self._keep_originals(stage)
            return
        if needy:
            raise BrokenPluginError(
                f"{type(modifier).__name__}.finalize at {stage.name} transforms weights, and {needy[0]} needs the "
                "original ones: do the same by state.transform_original, or name it before those that compress"
            )
        self.state.originals = None

    def _sweep(
        self,
        stage: Stage,
        modifiers: Sequence[Modifier],
        readers: Sequence[Modifier],
        histograms: StageHistograms | None = None,
    ) -> int:
        """Run the stage on every batch, if inputs of its layers are wanted.

        Args:
            stage: whose layers.
            modifiers: whose statistics are collected.
            readers: whose `calibrate_batch` is fired.
            histograms: that count inputs; None where they are counted already.

        Returns:
            How many batches ran.
        """
        read = {layer.name: layer for modifier in readers for layer in modifier.layers(stage)}
        wanted = {layer.name: layer for layer in self.store.begin(modifiers)} | read
        to_the_end, swept = self.pipeline.needs_sweep(self.state, stage), 0
        if not (wanted or to_the_end):
            return swept
        total = len(self.state.batches)
        count, watch = TokenCount.of(stage.modules, wanted.values()), Watch.of(stage)
        sums = watch.sums() if readers else {}
        weights = sum(layer.weight.nbytes for layer in stage.every_layer)
        with (
            watched_experts(observed_experts(stage.modules, wanted.values())),
            InputTap(wanted.values(), to_the_end=to_the_end) as tap,
            closing(generator(self.pipeline.sweep(self.state, stage))) as sweep,
        ):
            bar = f"calibrating {stage.name}"
            found = self._batch_inputs(sweep, tap, weights=weights)
            seeing = self.store.seeing(found, read)
            for seen in self.progress.track(seeing, description=bar, total=total, tokens=self._tokens):
                count.see(seen)
                if histograms is not None and self.state.share.owns(seen.index):
                    histograms.see(seen)
                for modifier in readers:
                    self.hooks.fire("calibrate_batch", modifier, self.state, stage, batch=seen.batch(read), watch=watch)
                swept += 1
        if readers:
            watch.check_sums(sums, readers)
        tidy_heap(weights)
        self.store.finish()
        self.store.forget(count.report(self.state))
        return swept

    def _batch_inputs(
        self, sweep: Iterator[Pass], tap: InputTap, *, weights: int
    ) -> Iterator[tuple[BatchInputs, BatchInputs | None]]:
        """What was seen in each batch, and in the original model where the sweep shows that.

        Args:
            sweep: over a stage.
            tap: on what is wanted of it.
            weights: bytes of its weights.
        """
        original = None
        for one in sweep:
            seen = tap.collect(one.index, self.state.batches[one.index])
            tidy_heap(weights)
            if one.original:
                original = seen
                continue
            yield seen, original
            original = None

    def _tokens(self, seen: BatchInputs) -> int:
        return count_tokens(self.state.batches[seen.index]) or 0

    def _sweep_again(self, stage: Stage, modifiers: Sequence[Modifier], swept: int) -> None:
        """Collect anew what these modifiers requested; those that read batches which no longer hold begin anew."""
        restarted = [one for one in self.hooks.reading_batches(modifiers) if self._has_moved(one, stage)]
        for modifier in restarted:
            self._initialize(modifier, stage)
        if self._sweep(stage, modifiers, restarted) != swept:
            raise CalibrationError(
                f"{type(modifiers[0]).__name__} needs statistics of {stage.name} that do not follow the transformation "
                f"of an earlier modifier, and the pipeline {type(self.pipeline).__name__} cannot run the stage twice"
            )

    def _is_stale(self, modifier: Modifier, stage: Stage) -> bool:
        """Whether what a modifier is about to read no longer holds."""
        reads = bool(self.hooks.reading_batches([modifier]))
        return self.store.lacks(modifier) or (reads and self._has_moved(modifier, stage))

    def _has_moved(self, modifier: Modifier, stage: Stage) -> bool:
        return self.store.has_moved(layer.name for layer in modifier.layers(stage))


def is_divisible(modifiers: Sequence[Modifier], stage: Stage) -> bool:
    """Whether parts of a stage may be compressed before others have seen a batch.

    Not where a modifier needs the stage whole or transforms it, nor where experts are shown what their router gives to
    others.
    """
    needs = [modifier.needs() for modifier in modifiers]
    whole = any(TRANSFORMS in modifier.traits for modifier in modifiers)
    whole = whole or any(one.whole_stage or one.calls for one in needs)
    return not whole and not any(isinstance(module, LinearExperts) for module in stage.modules.values())


def generator(found: Any) -> Any:
    """Stages or a sweep that can be closed: the base asks for generators, and the kit checks it."""
    return found if hasattr(found, "close") else (item for item in found)
