"""A job: a recipe, a model and what it is calibrated with, ready to run.

plan        every layer gets a line in the report, every quantized one a scheme; what cannot end well stops here
a pass      the stages of the pipeline one after the other: `coldpress.run.stage_run`; one pass for all modifiers, or
            one for each; before it a measuring pass where a modifier needs one; in the last one stages are written, or
            recalled from an interrupted run
save        config, tokenizer, recipe, report, manifest; the folder gets its name
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from time import perf_counter
from typing import Any

import torch
from attrs import evolve, field, frozen

from coldpress.attachment import Attached
from coldpress.bases.without_data import stored_nbytes
from coldpress.calibration.gradient_store import GradientStore
from coldpress.calibration.store import StatisticStore
from coldpress.checkpoint.companion import Origin
from coldpress.checkpoint.fingerprint import of_batches
from coldpress.checkpoint.output import Output
from coldpress.checkpoint.untouched import Untouched
from coldpress.dataflow.fused import FusedLayers
from coldpress.errors import BrokenPluginError
from coldpress.format import Format
from coldpress.layer_report import LayerReport
from coldpress.models.evaluating import evaluating, uncompiled
from coldpress.models.heap import steady_heap
from coldpress.models.padded import padded_linears
from coldpress.models.streaming import WeightStream
from coldpress.modifier import Modifier, expanded
from coldpress.pipeline import Pipeline
from coldpress.planned import Planned, Sweep
from coldpress.quantized import set_encoding
from coldpress.recipe import Recipe, write_recipe
from coldpress.report import SILENT, Progress, Report, manifest_of, report_of
from coldpress.report.memory import peak_memory
from coldpress.report.page import PAGE, page_of
from coldpress.run import preflight, resume
from coldpress.run.blame import blaming
from coldpress.run.fewer_experts import keep_experts
from coldpress.run.hooks import Hooks
from coldpress.run.ignore import warn_of_routers
from coldpress.run.measuring import Measuring, run_through
from coldpress.run.needs import check_needs
from coldpress.run.outcome import check_complete, reason_untouched
from coldpress.run.quantized_before import attached_before, forget_changed, keep_schemes, schemes_before
from coldpress.run.ranks import calls_of, check_agreement, check_same_weights, store_of
from coldpress.run.reverse import ReverseSweep, wanted_gradients
from coldpress.run.stage_checks import check_scales, check_weights
from coldpress.run.stage_run import StageRun, generator
from coldpress.run.ties import check_ties, untie_layers
from coldpress.run.watch import Watch
from coldpress.stage import Stage, find_layers
from coldpress.state import State

log = logging.getLogger(__name__)


@frozen(kw_only=True, eq=False)
class Job:
    """One recipe that will be applied to one model; it can be planned, looked at, and run.

    Attributes:
        recipe: what to do.
        state: what it is done to.
        pipeline: how the model is cut into stages.
        output: where the checkpoint is written; None keeps the result in memory only.
        form: that a checkpoint of the result has, now or when it is saved later; None where that is not known.
        weights: brings the weights of a stage into memory when its turn comes; None when all of them are there.
        origin: where the model came from, whose small files the checkpoint gets too; None where that is no folder.
        sources: the files that the model is read from, which nothing may write meanwhile.
        progress: what a person sees meanwhile.
        keeps_codes: whether codes of finished stages stay in memory where nothing is written; weights tell them later.
        modifiers: the steps of the recipe, in the order in which they run.
        hooks: of these modifiers.
        claims: which layers each modifier will change; empty before `plan`.
        announced: what modifiers will attach, each with the name of its modifier; empty before `plan`.
        binding: what the run works on, as its journal has it; empty before `run`.
        finished: the weights of finished stages, where they stay in memory.
        gradients: what the reverse sweep finds, where a modifier needs it.
        predicted: what was expected of the run, for its report; empty where nothing was.
    """

    recipe: Recipe
    state: State
    pipeline: Pipeline
    output: Output | None = None
    form: Format | None = None
    weights: WeightStream | None = None
    origin: Origin | None = None
    sources: Untouched = field(factory=lambda: Untouched({}))
    progress: Progress = SILENT
    keeps_codes: bool = True
    modifiers: Sequence[Modifier] = field(init=False)
    hooks: Hooks = field(init=False)
    claims: list[preflight.Claim] = field(init=False, factory=list)
    announced: list[tuple[str, Attached]] = field(init=False, factory=list)
    binding: dict[str, Any] = field(init=False, factory=dict)
    finished: list[Watch] = field(init=False, factory=list)
    gradients: GradientStore = field(init=False, factory=GradientStore)
    predicted: dict[str, Any] = field(init=False, factory=dict)

    @modifiers.default
    def _expand(self) -> Sequence[Modifier]:
        return expanded(self.recipe.modifiers)

    @hooks.default
    def _register(self) -> Hooks:
        return Hooks(self.modifiers)

    def plan(self) -> None:
        """Settle what becomes of every layer, in `state.plan` and `state.report`, or refuse; no weight is read."""
        with blaming():
            self._plan()

    def _plan(self) -> None:
        modifiers, state = self.modifiers, self.state
        state.stored_nbytes = partial(stored_nbytes, self.form)
        claims = preflight.claims_of(modifiers, state.model, beside=state.report)
        state.plan = preflight.plan_of(claims, complete=self._completed)
        self.claims[:] = preflight.planned_only(claims, state.plan)
        check_needs(modifiers, self.pipeline, state)
        check_ties(self.claims, modifiers, state)
        for layer in find_layers(state.model.named_modules()):
            rows, columns = layer.weight.shape
            state.report[layer.name] = LayerReport(layer.name, type(layer.module).__name__, (rows, columns))
        keep_schemes(state, self.claims)
        if any(one.scheme.weights and one.scheme.weights.strategy == "tensor_group" for one in state.plan.values()):
            state.fact(FusedLayers)  # found while the model can be run
        warn_of_routers(state)
        for modifier in modifiers:
            modifier.check(state)
        self.announced[:] = preflight.announced_attachments(modifiers, state)
        self._check_written()

    def run(self) -> Report:
        """Do all of it; afterwards the state's model is compressed and the output, if any, is complete.

        Returns:
            What became of every layer.

        Raises:
            ColdpressError: says what is wrong and where.
        """
        with self.output or nullcontext(), blaming():
            return self._run()

    def _run(self) -> Report:
        start = perf_counter()
        recipe = write_recipe(self.recipe)  # first of all, because what cannot be written down should not begin
        preflight.check_devices(self.state.model, streamed=self.weights is not None)
        if self.output is not None:
            what = {"recipe": recipe, "pipeline": repr(self.pipeline), "format": repr(self.output.format)}
            if before := schemes_before(self.state.model):
                what["quantized before"] = "\n".join(f"{name}: {scheme}" for name, scheme in before.items())
            self.binding.update(resume.bind(self.state, self.output, what, self.weights))
        model = self.state.model
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),  # stages are seeded; the caller's own random numbers go on
            steady_heap(),
            evaluating(model),
            padded_linears(model),
            uncompiled(model),
            self.weights or nullcontext(),
        ):
            if not self.claims:
                self.plan()
            untie_layers(self.claims, self.modifiers, self.state)
            if self.output is not None:
                parts = (*self.modifiers, self.pipeline, *(one.attachment for _, one in self.announced))
                resume.bind_code(self.binding, self.output, [*self.recipe.modifiers, *parts], self.weights)
            check_agreement(self.state, self.binding, recipe)
            kept = resume.begin(self.output, self.binding, self.progress) if self.output is not None else []
            forget_changed(self.state, self.claims)
            self._run_backwards(kept)
            *earlier, last = self.passes()
            for modifiers in earlier:
                self._pass(modifiers)
            self._pass(last, kept)
        check_complete(self.state, self.claims, self.pipeline)
        self._check_finished("a hook")
        report = report_of(self.state, self.modifiers, recipe=recipe, seconds=perf_counter() - start)
        report = evolve(report, predicted=self.predicted, measured=self._measured(report))
        if self.output is not None:
            self.save(self.output, report)
            self._check_finished("save")
        return report

    def _measured(self, report: Report) -> dict[str, Any]:
        """What came of the run, in the units of what was predicted."""
        return {"seconds": round(report.seconds, 3), "host_bytes": peak_memory()}

    def _check_finished(self, hook: str) -> None:
        """Refuse weights that were changed after their stage was finished, so that what is written is another model.

        Raises:
            BrokenPluginError: names the parameter.
        """
        if found := [name for watch in self.finished for name in watch.changed()]:
            raise BrokenPluginError(
                f"{hook} of a modifier changed {found[0]} after its stage was finished: a hook changes weights of the "
                "stage that it is handed only"
            )

    def save(self, output: Output, report: Report) -> None:
        """Complete an output: what stages did not write, the files of modifiers, and all that is not a weight.

        Args:
            output: with what stages have written.
            report: of this run.
        """
        rest = output.rest(self.state)
        if self.weights is not None:
            self.weights.read(rest.modules)
        output.write(rest, self.state)
        output.write_others(self.state)
        report = evolve(report, measured={"bytes_after": output.nbytes(), **report.measured})
        if output.writes:
            self.hooks.save(self.state, output.folder)
        self.sources.check()
        output.finish(self.state, self.files(output.format, report))

    def files(self, form: Format, report: Report) -> dict[str, Any]:
        """What a checkpoint says of the run, by the names of its files: recipe, report, its page, and manifest.

        Args:
            form: of the checkpoint.
            report: of this run.
        """
        parts = (*self.modifiers, self.pipeline, form)
        binding = self.binding or {"data": of_batches(self.state.batches)}
        manifest = manifest_of(self.state, report, binding=binding, parts=parts)
        content = report.to_dict()
        page = page_of(content, recipe=report.recipe, manifest=manifest)
        return {"recipe.yaml": report.recipe, "report.json": content, PAGE: page, "manifest.json": manifest}

    def _completed(self, plan: dict[str, Planned]) -> dict[str, Planned]:
        """The plan with schemes as the format completes them."""
        form = self.form if self.output is None else self.output.format
        return plan if form is None or not plan else preflight.completed(plan, form, self.state.model)

    def _check_written(self) -> None:
        """See that what the plan leads to can be written, and read by the engines of its format.

        Raises:
            SchemeError: it cannot.
        """
        planned = {name: planned.scheme for name, planned in self.state.plan.items()}
        schemes = {**self.state.schemes, **planned}
        if self.form is not None and self.form.fuses_layers:
            preflight.check_fused(self.state, schemes)
        if self.output is not None:
            before = attached_before(self.state.model, self.announced)
            self.output.prepare(self.state, schemes, [*self.announced, *before])

    def passes(self) -> list[Sequence[Modifier]]:
        """The modifiers that go over the model together, pass by pass; at least one pass."""
        if self.pipeline.shares_sweeps or not self.modifiers:
            return [self.modifiers]
        return [[modifier] for modifier in self.modifiers]

    def _pass(self, modifiers: Sequence[Modifier], kept: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Go over the model once, after a measuring pass where a modifier needs one.

        Args:
            modifiers: of this pass.
            kept: records of an interrupted run; None when this is not the last pass, so that nothing is written and
                no weight is dropped.
        """
        measuring = [modifier for modifier in modifiers if modifier.needs().measuring_pass]
        records, stages = resume.by_pass(kept or ())
        if measuring:
            self._measure(measuring, records, durable=kept is not None)
        self._compress(modifiers, None if kept is None else stages)

    def _run_backwards(self, kept: Sequence[Mapping[str, Any]]) -> None:
        """Collect statistics of output gradients, where a modifier needs them, unless an interrupted run has."""
        wanted = wanted_gradients(self.modifiers, self.state.model)
        known = (self.gradients, wanted, self.state, self.output, self.weights)
        if not wanted or resume.recall_gradients(kept, *known):
            return
        ReverseSweep(
            state=self.state,
            pipeline=self.pipeline,
            wanted=wanted,
            store=self.gradients,
            read=self._read,
            release=self._release,
            progress=self.progress,
        ).run(StatisticStore(), self.output)

    def _release(self, stage: Stage) -> None:
        if self.weights is not None:
            self.weights.release(stage.modules)

    def _measure(self, modifiers: Sequence[Modifier], kept: Sequence[Mapping[str, Any]], *, durable: bool) -> None:
        """One measuring pass, and the plan of layers that follows from it."""
        output = self.output if durable else None
        Measuring(
            run=self._stage_run(modifiers),
            read=self._read,
            release=self._release,
            note=(lambda record: None) if output is None else output.note,
            drop_experts=self._drop_experts,
        ).decide(kept)
        self.state.plan = self._completed(self.state.plan)
        preflight.check_plan(self.state)
        self._check_written()

    def _drop_experts(self, kept: Mapping[str, Sequence[int]]) -> None:
        keep_experts(self.state, kept, self.weights)
        self.gradients.keep_experts(kept)
        self._plan()

    def _compress(self, modifiers: Sequence[Modifier], kept: Sequence[Mapping[str, Any]] | None) -> None:
        """Compress stage by stage.

        Args:
            modifiers: of this pass.
            kept: records of the stages that an interrupted run has finished; None when nothing is written.
        """
        run = self._stage_run(modifiers, [one for one in modifiers if not one.needs().measures_only])
        alone = None if self.pipeline.shares_sweeps or not modifiers else type(modifiers[0]).__name__
        title = f"compressing: {alone}" if alone else "compressing"
        before: Stage | None = None
        with closing(generator(self.pipeline.stages(self.state))) as stages:
            turns = self.progress.track(stages, description=title, total=self.pipeline.count(self.state), each=True)
            for number, stage in enumerate(turns):
                if self.weights is not None and kept is not None and before is not None:
                    self.weights.drop(before.modules)  # not earlier: the pipeline has now gone on to the next stage
                before = stage
                if self.output is not None and kept is not None and number < len(kept):
                    run_through(self.pipeline, self.state, stage)
                    resume.recall(stage, kept[number], self.state, self.output, self.weights)
                    continue
                torch.manual_seed(self.state.seed + number)  # what is drawn does not depend on earlier stages
                self._compress_stage(run, stage)
                if kept is not None:
                    self._write(stage)

    def sweep_of(self, modifiers: Sequence[Modifier]) -> Sweep:
        """What a pass over the stages is for, of these modifiers."""
        return preflight.sweep_of(modifiers, self.state)

    def _stage_run(self, modifiers: Sequence[Modifier], reading: Sequence[Modifier] | None = None) -> StageRun:
        """What works on the stages of a pass, of which `reading` read data, after the state is told."""
        state, decided = self.state, any(one.needs().measuring_pass and one.needs().data for one in modifiers)
        store = store_of(state, self.gradients, decided=decided)
        calls = calls_of(state.share, partial(self.pipeline.calls, state), len(state.batches))
        state.begin_pass(self.sweep_of(modifiers if reading is None else reading), store, calls)
        return StageRun(
            modifiers=modifiers,
            hooks=self.hooks,
            state=state,
            store=store,
            pipeline=self.pipeline,
            progress=self.progress,
        )

    def _read(self, stage: Stage) -> None:
        if self.weights is not None:
            self.weights.read(stage.modules)
        check_weights(stage)
        check_scales(stage, self.state.plan)

    def _compress_stage(self, run: StageRun, stage: Stage) -> None:
        start = perf_counter()
        self._read(stage)
        run.compress(stage)
        who = {} if self.pipeline.shares_sweeps or not run.modifiers else {"modifier": type(run.modifiers[0]).__name__}
        seconds = perf_counter() - start
        line = {"stage": stage.name, **who, "seconds": round(seconds, 3), "host_bytes": peak_memory()}
        self.state.log.append(line)
        log.info("compressed %s in %.2f s", stage.name, seconds)

    def _write(self, stage: Stage) -> None:
        """Give a reason for every layer that was left alone, look at what is new, and write the stage."""
        for layer in stage.every_layer:
            line = self.state.report[layer.name]
            if line.status == "untouched" and line.reason is None:
                line.reason = reason_untouched(layer, self.claims)
            if self.weights is None and layer.name in self.state.quantized:
                set_encoding(layer.module, self.state.quantized[layer.name], layer.weight)
        check_weights(stage, cause="made by a modifier, for it was finite before")
        check_same_weights(stage, self.state.share.ranks)
        if self.weights is None:
            self.finished.append(Watch.of(stage))
        if self.output is not None:
            self.output.write(stage, self.state)
            self.output.keep(stage, self.state)
        if self.output is not None or not self.keeps_codes:
            for layer in stage.every_layer:
                self.state.quantized.pop(layer.name, None)
