"""A job without a model: a recipe, a checkpoint, and where the result goes; planned, looked at, and run.

plan     every layer has a fate and every file of the output its tensors; what cannot end well stops here
run      units of layers are read, compressed and written by several workers; a file that is whole is made durable and
         gets its line in the journal; then config, report and manifest, and the folder gets its name
"""

import logging
from collections.abc import Mapping, Sequence
from math import prod
from threading import Lock
from time import perf_counter
from typing import Any

import torch
from attrs import evolve, field, frozen

from coldpress.arguments import DEFAULT_ACTIVATION_OBSERVER, DEFAULT_WEIGHT_OBSERVER
from coldpress.checkpoint import CheckpointWriter, Format
from coldpress.checkpoint.made_with import MADE_WITH, made_with
from coldpress.checkpoint.shard import read_header
from coldpress.checkpoint.untouched import Untouched, read_files
from coldpress.errors import SchemeError, TargetError
from coldpress.layer_report import LayerReport
from coldpress.modifier import TRANSFORMS, Modifier
from coldpress.recipe import Recipe, write_recipe
from coldpress.report import SILENT, Progress, Report, report_of
from coldpress.report.histogram import keep_worst
from coldpress.report.memory import peak_memory
from coldpress.run.blame import blaming
from coldpress.run.job import Job
from coldpress.run.preflight import shortened
from coldpress.schemes import describe, preset
from coldpress.shardwise.binding import binding_of
from coldpress.shardwise.finish import Finish
from coldpress.shardwise.layers import LayerReader
from coldpress.shardwise.opening import Opened
from coldpress.shardwise.outline import Outline, outline_of
from coldpress.shardwise.plan import Fates, Shard, fates_of, kept_schemes, left_out, shards_of
from coldpress.shardwise.spare import spared
from coldpress.shardwise.unit import NoForward, UnitRun
from coldpress.shardwise.workers import Workers
from coldpress.stage import Layer
from coldpress.state import State

log = logging.getLogger(__name__)


@frozen(kw_only=True, eq=False)
class ShardwiseJob:
    """One recipe that will be applied to the tensors of one checkpoint.

    Attributes:
        recipe: what to do; without modifiers, the checkpoint is only converted.
        opened: the checkpoint.
        form: how quantized layers are written.
        writer: where the result goes.
        device: where layers are compressed.
        max_workers: units that are worked on at the same time.
        seed: of everything random.
        progress: what a person sees meanwhile.
        predicted: what is expected of the run, for its report; empty where nothing is.
        outline: what stands in for the model.
        state: with the plan and the report of every layer, after `plan`.
    """

    recipe: Recipe
    opened: Opened
    form: Format
    writer: CheckpointWriter
    device: torch.device
    max_workers: int
    seed: int = 0
    progress: Progress = SILENT
    predicted: dict[str, Any] = field(factory=dict)
    outline: Outline = field(init=False)
    state: State = field(init=False)
    job: Job = field(init=False)
    _planned: list[tuple[Fates, list[Shard]]] = field(init=False, factory=list)

    @outline.default
    def _outline(self) -> Outline:
        return outline_of(self.opened.weights, self.opened.config, dtype=self.opened.dtype())

    @state.default
    def _state(self) -> State:
        return State(model=self.outline.model, seed=self.seed, scale_dtype=self.dtype())

    @job.default
    def _job(self) -> Job:
        modifiers = spared(self.recipe.modifiers, self.outline)
        return Job(
            recipe=Recipe(tuple(modifiers)),
            state=self.state,
            pipeline=NoForward(),
            form=self.form,
        )

    def dtype(self) -> torch.dtype:
        """The dtype of the model; bfloat16 where neither configuration nor files tell."""
        return self.opened.dtype() or torch.bfloat16

    def plan(self) -> tuple[Fates, list[Shard]]:
        """Settle what becomes of every tensor; no tensor is read.

        Raises:
            ColdpressError: the job could not end well.
        """
        if not self._planned:
            with blaming():
                self._planned.append(self._plan())
        return self._planned[0]

    def _plan(self) -> tuple[Fates, list[Shard]]:
        check_modifiers(self.job.modifiers)
        self._check_refused()
        kept = kept_schemes(self.opened, self.outline, self.form)
        self.state.schemes.update(kept)
        for name, reason in {**self.outline.refused, **self.outline.left}.items():
            self.state.report[name] = self._tensor_line(name, reason)
        self.job.plan()
        fates = fates_of(self.state, self.job.claims, kept, self.outline, self.opened)
        self.state.schemes.clear()
        self.state.schemes.update(fates.schemes)
        self._check_writable(fates)
        self._describe(fates)
        shards = shards_of(self.opened, self.outline, fates, self.state)
        return fates, shards

    def run(self) -> Report:
        """Do it; afterwards the output is complete.

        Returns:
            What became of every layer.

        Raises:
            ColdpressError: one of its kinds, saying what is wrong and where.
        """
        start = perf_counter()
        recipe = write_recipe(self.recipe)
        untouched = Untouched.of(read_files(self.opened.folder))
        fates, shards = self.plan()
        binding = binding_of(self.opened, recipe=recipe, form=self.form, device=self.device, seed=self.seed)
        parts, observers = (*self.job.modifiers, self.form), (DEFAULT_WEIGHT_OBSERVER, DEFAULT_ACTIVATION_OBSERVER)
        binding[MADE_WITH] = made_with([*parts, self.opened.stored], recipe=recipe, observers=observers)
        unit_run = self.unit_run(fates)
        with self.writer, blaming():
            done = self._begin(binding)
            workers = Workers(
                run=unit_run,
                writer=self.writer,
                max_workers=self.max_workers,
                progress=self.progress,
                lock=Lock(),
            )
            workers.work([shard for shard in shards if shard.name not in done], total=len(shards), note=self._note)
            untouched.check()
            report = self._report(shards, recipe, seconds=perf_counter() - start)
            finish = Finish(self.opened, self.outline, self.form, self.writer, fates)
            finish.write(shards, report, self.state, binding=binding, parts=(*self.job.modifiers, self.form))
        return report

    def unit_run(self, fates: Fates) -> UnitRun:
        """What works on units of layers; it reads when it runs."""
        reader = LayerReader(self.opened.weights, self.outline, self.opened.stored, self.device)
        return UnitRun(
            modifiers=self.job.modifiers,
            reader=reader,
            state=self.state,
            claims=self.job.claims,
            fates=fates,
            form=self.form,
            dtype=self.dtype(),
        )

    def _report(self, shards: Sequence[Shard], recipe: str, *, seconds: float) -> Report:
        """What became of every layer, and what the run took in the units of what was predicted."""
        files = [self.writer.part(shard.number).with_suffix(".safetensors") for shard in shards]
        nbytes = sum(entry.end - entry.begin for path in files for entry in read_header(path).values())
        measured = {"bytes_after": nbytes, "seconds": round(seconds, 3), "host_bytes": peak_memory()}
        report = report_of(self.state, self.job.modifiers, recipe=recipe, seconds=seconds)
        return evolve(report, predicted=self.predicted, measured=measured)

    def _begin(self, binding: Mapping[str, Any]) -> set[str]:
        """Names of the files that an interrupted run has finished."""
        records = self.writer.begin(binding)
        for record in records:
            for line in record["report"]:
                self.state.report[line["name"]] = LayerReport.from_dict(line)
            self.state.log.append(dict(record["log"]))
        if records:
            names = [record["stage"] for record in records]
            self.progress.say(f"going on where a run was interrupted; kept: {len(names)} files, {', '.join(names[:3])}")
        return {record["stage"] for record in records}

    def _note(self, lines: Sequence[LayerReport], entry: Mapping[str, Any]) -> None:
        """Take what a finished file says of its layers."""
        self.state.report.update({line.name: line for line in lines})
        keep_worst(self.state.report)
        self.state.log.append(dict(entry))

    def _check_refused(self) -> None:
        """Refuse experts that cannot be told apart and that the recipe means.

        Raises:
            TargetError: names them.
        """
        experts = [
            (name, reason)
            for name, reason in self.outline.refused.items()
            if any(_means(modifier, name) for modifier in self.job.modifiers)
        ]
        if experts:
            problems = shortened([f"{name}: {reason}" for name, reason in experts], most=4)
            raise TargetError(
                f"{problems}\nthe recipe means these experts, and they would stay as they are: use oneshot, which runs "
                f"the model to see how they are read, or ignore them, for example with ignore=[{experts[0][0]!r}]"
            )

    def _check_writable(self, fates: Fates) -> None:
        for attached in self.opened.attached():
            self.form.check_attachment(attached)
        for name, scheme in fates.schemes.items():
            if fates.of[name] == "changed":
                rows, columns = self.outline.matrices[name].shape
                self.form.check(scheme, name, (rows, columns))
        lost = [name for name, fate in fates.of.items() if fate == "decoded" and self._was_quantized(name)]
        plain = self.form.config({lost[0]: preset("W8A16")}, []) is None if lost else True
        if not plain and not self.recipe.modifiers and not fates.schemes:
            raise SchemeError(
                f"{type(self.form).__name__} can hold none of the {len(lost)} quantized layers as they are, the first "
                f"is {lost[0]}: decode them with --to dense, or quantize them anew with model_free_ptq"
            )
        if lost and not plain:
            log.warning("%d quantized layers are decoded and written whole, the first is %s", len(lost), lost[0])
        if type(self.form).publish is not Format.publish:
            raise SchemeError(
                f"the format {type(self.form).__name__} writes another container than safetensors files, which needs "
                "the model: compress it with format=, by oneshot or `coldpress compress` without --model-free"
            )

    def _was_quantized(self, name: str) -> bool:
        return self.opened.weights.scheme(self.outline.matrices[name].tensor) is not None

    def _describe(self, fates: Fates) -> None:
        """Give the reason of every layer that is not changed its place in the report, and say what is left out."""
        for name, fate in fates.of.items():
            line = self.state.report[name]
            if fate == "kept":
                line.become("quantized", scheme=describe(fates.schemes[name]), reason="kept as the checkpoint has it")
            elif fate != "changed":
                line.status, line.scheme = "untouched", None
                line.reason = self.outline.spared.get(name) or self._reason(name)
                if fate == "decoded":
                    line.reason = "decoded: it was quantized or one of several in a tensor, and is written whole"
        for name in left_out(self.opened):
            reason = "left out: part of how the checkpoint was quantized, and of nothing that is written"
            self.state.report[name] = self._tensor_line(name, reason)
            log.warning("%s is left out: it is part of no weight", name)

    def _reason(self, name: str) -> str:
        module = self.outline.model.get_submodule(name)
        names = tuple(kind.__name__ for kind in type(module).__mro__)
        layer = Layer(name, module, names)
        ignoring = [type(one).__name__ for one in self.recipe.modifiers if layer.matches(one.ignore)]
        return f"ignored by {', '.join(ignoring)}" if ignoring else "no target of the recipe matches it"

    def _tensor_line(self, name: str, reason: str) -> LayerReport:
        weights, stored = self.opened.weights, self.opened.stored
        rows, *rest = tuple(stored.shape(name) if name in stored.homes() else weights.shape(name)) or (1,)
        return LayerReport(name, "Tensor", (rows, prod(rest)), reason=reason)


def check_modifiers(modifiers: Sequence[Modifier]) -> None:
    """Refuse modifiers that need more than the weights of one layer after the other.

    Raises:
        TargetError: names the modifier and what it needs.
    """
    for modifier in modifiers:
        needs, name = modifier.needs(), type(modifier).__name__
        why = (
            "reads calibration data"
            if needs.data
            else "measures the whole model before it decides"
            if needs.measuring_pass
            else "moves scales between layers"
            if TRANSFORMS in modifier.traits
            else None
        )
        if why:
            raise TargetError(
                f"{name} {why}, and without a model nothing runs: use oneshot (leave out --model-free), or a recipe of "
                "modifiers that read weights only, such as rounding with dynamic or no quantization of inputs"
            )


def _means(modifier: Modifier, tensor: str) -> bool:
    """Whether a modifier would compress the experts of a joint tensor if they were layers."""
    owner = tensor.rpartition(".")[0]
    module = torch.nn.Identity()
    joint = Layer(tensor, module, ("Module",))
    whole = Layer(owner, module, ("Module",))
    if joint.matches(modifier.ignore) or whole.matches(modifier.ignore):
        return False
    experts = [Layer(f"{owner}.0.{last}", module, ("Linear", "Module")) for last in ("up_proj", "down_proj")]
    return any(one.matches(modifier.patterns()) and not one.matches(modifier.ignore) for one in experts)
