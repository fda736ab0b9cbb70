"""The run, from the first look at the recipe to the finished folder.

preflight  every layer gets a line in the report; what cannot end well stops here
a pass     the stages of the pipeline one after the other: the hooks of `coldpress.run.stage_run`; one pass for all
           modifiers, or one for each; in the last one stages are written, or recalled from an interrupted run
save       config, tokenizer, recipe, report, manifest; the folder gets its name
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from time import perf_counter
from typing import Any

import pluggy
import torch
from attrs import field, frozen

from coldpress import hookspecs
from coldpress.checkpoint.companion import Origin
from coldpress.checkpoint.fingerprint import of_batches
from coldpress.checkpoint.output import Output
from coldpress.errors import BrokenPluginError, TargetError
from coldpress.models.evaluating import evaluating
from coldpress.models.heap import steady_heap
from coldpress.models.streaming import WeightStream
from coldpress.models.tie import untie
from coldpress.modifier import PRUNES, QUANTIZES, Modifier
from coldpress.pipeline import Pipeline
from coldpress.recipe import Recipe, write_recipe
from coldpress.report import SILENT, Progress, Report, manifest_of, report_of
from coldpress.run import preflight, resume
from coldpress.run.stage_run import StageRun, generator
from coldpress.stage import Stage, find_layers
from coldpress.state import LayerReport, State

log = logging.getLogger(__name__)


@frozen(kw_only=True, eq=False)
class Run:
    """One recipe applied to one model.

    Attributes:
        recipe: what to do.
        state: what it is done to.
        pipeline: how the model is cut into stages.
        output: where the checkpoint is written; None keeps the result in memory only.
        weights: brings the weights of a stage into memory when its turn comes; None when all of them are there.
        origin: where the model came from, whose small files the checkpoint gets too; None where that is no folder.
        progress: what a person sees meanwhile.
    """

    recipe: Recipe
    state: State
    pipeline: Pipeline
    output: Output | None = None
    weights: WeightStream | None = None
    origin: Origin | None = None
    progress: Progress = SILENT
    hooks: pluggy.PluginManager = field(init=False)

    @hooks.default
    def _register(self) -> pluggy.PluginManager:
        return hook_manager(self.recipe.modifiers)

    def execute(self) -> Report:
        """Do all of it; afterwards the state's model is compressed and the output, if any, is complete.

        Returns:
            What became of every layer.

        Raises:
            ColdpressError: one of its kinds, saying what is wrong and where.
        """
        start = perf_counter()
        recipe = write_recipe(self.recipe)  # first of all, because what cannot be written down should not begin
        preflight.check_devices(self.state.model, streamed=self.weights is not None)
        binding: Mapping[str, Any] = {}
        if self.output is not None:
            job = {"recipe": recipe, "pipeline": repr(self.pipeline), "format": repr(self.output.format)}
            binding = resume.bind(self.state, self.output, job, self.weights)
        unseeded = torch.random.fork_rng(devices=[])  # stages are seeded; the caller's own random numbers go on
        with torch.no_grad(), unseeded, steady_heap(), evaluating(self.state.model), self.weights or nullcontext():
            claims = self._survey()
            kept = resume.begin(self.output, binding, self.progress) if self.output is not None else []
            *earlier, last = self._passes()
            for modifiers in earlier:
                self._pass(modifiers, claims)
            self._pass(last, claims, kept)
        self._check_complete(claims)
        report = report_of(self.state, recipe=recipe, seconds=perf_counter() - start)
        if self.output is not None:
            self.save(self.output, report, binding)
        return report

    def save(self, output: Output, report: Report, binding: Mapping[str, Any] | None = None) -> None:
        """Complete an output: what stages did not write, the files of modifiers, and all that is not a weight.

        Args:
            output: with what stages have written.
            report: of this run.
            binding: what the run worked on, as its journal has it.
        """
        rest = output.rest(self.state)
        if self.weights is not None:
            self.weights.read(rest.modules)
        output.write(rest, self.state)
        self.hooks.hook.save(state=self.state, folder=output.folder)
        parts = (*self.recipe.modifiers, self.pipeline, output.format)
        manifest = manifest_of(
            self.state, report, binding=binding or {"data": of_batches(self.state.batches)}, parts=parts
        )
        files = {"recipe.yaml": report.recipe, "report.json": report.to_dict(), "manifest.json": manifest}
        output.finish(self.state, files, origin=self.origin)

    def _survey(self) -> list[preflight.Claim]:
        modifiers, state = self.recipe.modifiers, self.state
        claims = preflight.claims_of(modifiers, state.model)
        schemes, state.planned = preflight.schemes_of(claims), preflight.quantizers_of(claims)
        preflight.check_data(modifiers, self.pipeline, state)
        for layer in find_layers(state.model.named_modules()):
            rows, columns = layer.weight.shape
            state.report[layer.name] = LayerReport(layer.name, type(layer.module).__name__, (rows, columns))
        if self.output is not None:
            self.output.prepare(state.model, schemes)
        untie(state.model, {layer.name: None for claim in claims for layer in claim.layers})
        return claims

    def _passes(self) -> list[Sequence[Modifier]]:
        """The modifiers that go over the model together, pass by pass; at least one pass."""
        modifiers = self.recipe.modifiers
        return [modifiers] if self.pipeline.shares_sweeps or not modifiers else [[modifier] for modifier in modifiers]

    def _pass(
        self,
        modifiers: Sequence[Modifier],
        claims: Sequence[preflight.Claim],
        kept: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Go over the model once.

        Args:
            modifiers: who takes part.
            claims: of all modifiers.
            kept: records of the stages that an interrupted run has finished; None when this is not the last pass, so
                that nothing is written and no weight is dropped.
        """
        claims = [claim for claim in claims if any(claim.modifier is modifier for modifier in modifiers)]
        self.state.observed = preflight.observed(claims)
        self.state.follows_error = any(modifier.needs_data() and modifier.follows_error() for modifier in modifiers)
        self.state.compares = any(modifier.compares() for modifier in modifiers)
        description = "compressing" if self.pipeline.shares_sweeps else f"compressing: {type(modifiers[0]).__name__}"
        before: Stage | None = None
        with closing(generator(self.pipeline.stages(self.state))) as stages:
            turns = self.progress.track(stages, description=description, total=self.pipeline.count(self.state))
            for number, stage in enumerate(turns):
                if self.weights is not None and kept is not None and before is not None:
                    self.weights.drop(before.modules)  # not earlier: the pipeline has now gone on to the next stage
                before = stage
                if self.output is not None and kept is not None and number < len(kept):
                    self._pass_by(stage)
                    resume.recall(stage, kept[number], self.state, self.output, self.weights)
                    continue
                torch.manual_seed(self.state.seed + number)  # what is drawn does not depend on earlier stages
                self._compress(stage, modifiers, preflight.within(claims, stage))
                if kept is not None:
                    self._complete(stage)

    def _pass_by(self, stage: Stage) -> None:
        """Show a stage that will not be compressed to those who hand on what it puts out."""
        if self.pipeline.needs_sweep(self.state, stage):
            with closing(generator(self.pipeline.sweep(self.state, stage))) as sweep:
                for _ in sweep:
                    pass

    def _compress(self, stage: Stage, modifiers: Sequence[Modifier], claims: Sequence[preflight.Claim]) -> None:
        start = perf_counter()
        if self.weights is not None:
            self.weights.read(stage.modules)
        preflight.check_weights(stage)
        versions = {layer.name: layer.module.weight._version for layer in stage.every_layer}
        StageRun(
            modifiers=modifiers,
            hooks=self.hooks,
            state=self.state,
            pipeline=self.pipeline,
            progress=self.progress,
        ).run(stage)
        self._report(stage, claims, versions)
        who = {} if self.pipeline.shares_sweeps else {"modifier": type(modifiers[0]).__name__}
        seconds = perf_counter() - start
        self.state.log.append({"stage": stage.name, **who, "seconds": round(seconds, 3)})
        log.info("compressed %s in %.2f s", stage.name, seconds)

    def _report(self, stage: Stage, claims: Sequence[preflight.Claim], versions: dict[str, int]) -> None:
        """See that every claimed layer of a stage was changed, or skipped with a reason."""
        missed = preflight.unreached(
            [c for c in claims if c.modifier.traits & {QUANTIZES, PRUNES}], versions, self.state
        )
        if missed:
            raise TargetError(
                f"{preflight.shortened(missed)}\nclaimed and left as it was: a modifier compresses every layer that it "
                "claims or calls state.skip(layer, reason)"
            )
        for layer in stage.every_layer:
            line = self.state.report[layer.name]
            if line.status == "untouched" and layer.module.weight._version != versions[layer.name]:
                line.status = "changed"
                line.sparsity = 1 - layer.weight.count_nonzero().item() / layer.weight.numel()

    def _complete(self, stage: Stage) -> None:
        """Give a reason for every layer that was left alone, and write the stage."""
        for layer in stage.every_layer:
            line = self.state.report[layer.name]
            if line.status == "untouched" and line.reason is None:
                line.reason = preflight.reason_untouched(layer, self.recipe.modifiers)
        if self.output is not None:
            self.output.write(stage, self.state)
            self.output.keep(stage, self.state)
            for layer in stage.every_layer:
                self.state.quantized.pop(layer.name, None)

    def _check_complete(self, claims: Sequence[preflight.Claim]) -> None:
        """No layer of the model fell between the stages of the pipeline."""
        lost = [name for name, line in self.state.report.items() if line.status == "untouched" and line.reason is None]
        claimed = {layer.name for claim in claims for layer in claim.layers}
        if claimed.intersection(lost):
            names = preflight.shortened([name for name in lost if name in claimed])
            raise TargetError(f"{names}\nin no stage of the pipeline {type(self.pipeline).__name__}, so never reached")
        for name in lost:
            self.state.report[name].reason = "in no stage of the pipeline"


def hook_manager(modifiers: Sequence[Modifier]) -> pluggy.PluginManager:
    """A manager that calls modifiers in recipe order.

    Raises:
        BrokenPluginError: a modifier implements a hook that does not exist, or with arguments that it does not have.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        for index, modifier in reversed(list(enumerate(modifiers))):  # pluggy calls the last registered first
            manager.register(modifier, name=f"{index}:{type(modifier).__name__}")
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise BrokenPluginError(f"a hook does not fit coldpress.hookspecs: {error}") from error
    return manager
