"""StageRun: the hooks of one stage, modifier by modifier, with as few sweeps over the data as the recipe allows.

initialize of every modifier         statistics are asked for
a sweep                              all that was asked for is collected at once
finalize of every modifier           in between, another sweep where somebody reads what no longer holds
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pluggy
from attrs import frozen

from coldpress.calibration.collate import count_tokens
from coldpress.calibration.tap import BatchInputs, InputTap
from coldpress.errors import CalibrationError
from coldpress.experts import LinearExperts, TokenCount, report_unseen, watched_experts
from coldpress.models.simulation import simulate_activations
from coldpress.modifier import TRANSFORMS, Modifier
from coldpress.pipeline import Pipeline
from coldpress.report import Progress
from coldpress.stage import Stage
from coldpress.state import State


@frozen(kw_only=True, eq=False)
class StageRun:
    """The work on a stage, after its weights are there.

    Attributes:
        modifiers: in recipe order.
        hooks: where they are registered.
        state: what they are handed.
        pipeline: runs the stage on the batches.
        progress: what a person sees meanwhile.
    """

    modifiers: Sequence[Modifier]
    hooks: pluggy.PluginManager
    state: State
    pipeline: Pipeline
    progress: Progress

    def run(self, stage: Stage) -> None:
        """Fire `initialize`, `calibrate_batch` and `finalize`, for each of its parts; then the stage is compressed.

        Raises:
            CalibrationError: the stage must be swept again, and the pipeline cannot.
        """
        divided = self.pipeline.parts(self.state, stage) if self._is_divisible(stage) else (stage,)
        with closing(generator(divided)) as parts:
            for part in parts:
                self._run(part)
                for layer in part.every_layer:
                    if layer.name in self.state.quantized:
                        simulate_activations(layer.module, self.state.quantized[layer.name])

    def _is_divisible(self, stage: Stage) -> bool:
        """Whether parts of a stage may be compressed before others have seen a batch.

        Not where the signal moves between them, nor where experts are shown what their router gives to others.
        """
        moving = any(TRANSFORMS in modifier.traits for modifier in self.modifiers)
        return not moving and not any(isinstance(module, LinearExperts) for module in stage.modules.values())

    def _run(self, stage: Stage) -> None:
        try:
            for modifier in self.modifiers:
                self._initialize(modifier, stage)
            swept = self._sweep(stage, self.modifiers, self._readers(self.modifiers))
            for position, modifier in enumerate(self.modifiers):
                if self._is_stale(modifier, stage):
                    self._sweep_again(stage, self.modifiers[position:], swept)
                self._finalize(modifier, stage)
            report_unseen(self.state, stage.every_layer)
        finally:
            self.state.statistics.clear()

    def _initialize(self, modifier: Modifier, stage: Stage) -> None:
        with self.state.statistics.requesting(modifier):
            self._fire("initialize", [modifier], stage=stage)

    def _finalize(self, modifier: Modifier, stage: Stage) -> None:
        """Fire the hook; one that moves the signal and does not say how costs what was collected."""
        statistics, before = self.state.statistics, _versions(stage)
        statistics.carried = False
        self._fire("finalize", [modifier], stage=stage)
        if TRANSFORMS in modifier.traits and not statistics.carried and _versions(stage) != before:
            statistics.lose()

    def _sweep(self, stage: Stage, modifiers: Sequence[Modifier], readers: Sequence[Modifier]) -> int:
        """Run the stage on every batch, if somebody wants to know what its layers see.

        Args:
            stage: whose layers.
            modifiers: whose statistics are collected.
            readers: whose `calibrate_batch` is fired.

        Returns:
            How many batches ran.
        """
        statistics = self.state.statistics
        read = {layer.name: layer for modifier in readers for layer in modifier.layers(stage)}
        wanted = {layer.name: layer for layer in statistics.begin(modifiers)} | read
        to_the_end, swept = self.pipeline.needs_sweep(self.state, stage), 0
        if not (wanted or to_the_end):
            return swept
        total = len(self.state.batches)
        count = TokenCount.of(stage.modules, wanted.values())
        with (
            watched_experts(stage.modules.values()),
            InputTap(wanted.values(), to_the_end=to_the_end) as tap,
            closing(generator(self.pipeline.sweep(self.state, stage))) as sweep,
        ):
            bar = f"calibrating {stage.name}"
            sightings = self._batch_inputs(sweep, tap)
            for sighting, original in self.progress.track(sightings, description=bar, total=total, tokens=self._tokens):
                statistics.see(sighting.calls, sighting.tokens, None if original is None else original.inputs())
                count.see(sighting)
                if readers:
                    self._fire("calibrate_batch", readers, stage=stage, batch=sighting.batch(read))
                swept += 1
        statistics.finish()
        count.report(self.state)
        return swept

    def _batch_inputs(self, sweep: Iterator[int], tap: InputTap) -> Iterator[tuple[BatchInputs, BatchInputs | None]]:
        """What was seen in each batch, and in the original model where the sweep shows that."""
        original = None
        for index in sweep:
            place = index if index >= 0 else ~index
            sighting = tap.collect(place, self.state.batches[place])
            if index < 0:
                original = sighting
                continue
            yield sighting, original
            original = None

    def _tokens(self, seen: tuple[BatchInputs, BatchInputs | None]) -> int:
        return count_tokens(self.state.batches[seen[0].index]) or 0

    def _sweep_again(self, stage: Stage, modifiers: Sequence[Modifier], swept: int) -> None:
        """Collect anew what these modifiers asked for; those who looked at batches that no longer hold begin anew."""
        restarted = [modifier for modifier in self._readers(modifiers) if self._has_moved(modifier, stage)]
        for modifier in restarted:
            self._initialize(modifier, stage)
        if self._sweep(stage, modifiers, restarted) != swept:
            raise CalibrationError(
                f"{type(modifiers[0]).__name__} needs statistics of {stage.name} that do not follow a signal which an "
                f"earlier modifier moved, and the pipeline {type(self.pipeline).__name__} cannot run the stage twice"
            )

    def _is_stale(self, modifier: Modifier, stage: Stage) -> bool:
        """Whether what a modifier is about to read no longer holds."""
        reads = bool(self._readers([modifier]))
        return self.state.statistics.lacks(modifier) or (reads and self._has_moved(modifier, stage))

    def _has_moved(self, modifier: Modifier, stage: Stage) -> bool:
        return self.state.statistics.has_moved(layer.name for layer in modifier.layers(stage))

    def _readers(self, modifiers: Sequence[Modifier]) -> list[Modifier]:
        """Those who look at batches themselves; inputs are kept for nobody else."""
        looking = [one.plugin for one in self.hooks.hook.calibrate_batch.get_hookimpls()]
        return [one for one in modifiers if one.needs_data() and any(one is plugin for plugin in looking)]

    def _fire(self, hook: str, modifiers: Sequence[Modifier], **arguments: Any) -> None:
        """Call a hook of some modifiers, in recipe order."""
        others = [one for one in self.hooks.get_plugins() if not any(one is modifier for modifier in modifiers)]
        self.hooks.subset_hook_caller(hook, others)(state=self.state, **arguments)


def _versions(stage: Stage) -> list[tuple[int, int]]:
    """What changes when any parameter of a stage does."""
    parts = (part for module in stage.modules.values() for part in module.parameters(recurse=False))
    return [(id(part), part._version) for part in parts]


def generator(found: Any) -> Any:
    """Stages or a sweep that can be closed: the base asks for generators, and the kit checks it."""
    return found if hasattr(found, "close") else (item for item in found)
