"""From a planned job to what is known of its run."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from attrs import asdict

from coldpress import registry
from coldpress.arguments import DEFAULT_IGNORE
from coldpress.bases.online_rotation import OnlineRotation
from coldpress.calibration.batch import count_places
from coldpress.checkpoint.pickled import PickledReader
from coldpress.checkpoint.reader import CheckpointReader
from coldpress.checkpoint.several import SeveralFormats
from coldpress.dataflow.empty import empty_copy
from coldpress.dataflow.fused import FusedLayers, split_groups
from coldpress.errors import CalibrationError
from coldpress.format import Format
from coldpress.modifier import Modifier
from coldpress.planning.contents import PlannedContents, planned_contents
from coldpress.planning.division import Division
from coldpress.planning.forward import Forward, forward_of
from coldpress.planning.prediction import EngineVerdict, LayerKind, Prediction
from coldpress.planning.rates import Rates, measured_rates
from coldpress.planning.stages import StageCosts
from coldpress.report.memory import memory_now
from coldpress.run.job import Job
from coldpress.run.outcome import reason_untouched
from coldpress.run.stage_run import is_divisible
from coldpress.schemes import Scheme, describe
from coldpress.schemes.engines import FORMAT, engines_for
from coldpress.stage import Layer, Stage, class_names, find_layers, matches
from coldpress.state import State

BESIDE = 8.5e5  # steps: to open the model and hash the code, to publish files, to draw the page
SPREAD = (0.6, 1.6)
"""The run's time over that of its operations at the measured rates is between these: `benchmarks/plan.py runs`."""


def predict(job: Job, *, ranks: int = 1, rates: Rates | None = None) -> Prediction:
    """What is known of a job that is planned and has an output; nothing is read, run on data or changed.

    Args:
        job: after `plan`.
        ranks: that will share the work.
        rates: of the machine that it will run on; None measures those of this one.

    Raises:
        CalibrationError: no batch runs a block whose layers are to be calibrated.
    """
    contents = planned_contents(job)
    costs = _stage_costs(job, contents, ranks, rates)
    schemes = {**job.state.schemes, **{name: one.scheme for name, one in job.state.plan.items()}}
    return Prediction(
        weights=sum(prod(shape) for _, shape in _stored(job).values()),
        before=_before(job),
        after=contents.nbytes(),
        files=contents.file_nbytes(),
        disk=contents.disk_nbytes(),
        now=memory_now() or 0,
        stages=tuple(costs.of(stage) for stage in costs.outline.stages),
        beside=BESIDE / costs.rates.steps,
        spread=SPREAD,
        kinds=tuple(_kinds(job, contents)),
        left_alone=tuple(_left_alone(job)),
        unmatched=tuple(unmatched_rules(job.modifiers, job.state)),
        split=tuple(split_groups(job.state.model, schemes, lambda: job.state.fact(FusedLayers))),
        data=job.state.calibration,
        engines=tuple(_engines(job)),
        rates=asdict(costs.rates),
        notes=tuple(_notes(job, contents, costs)),
        ranks=ranks,
    )


def _stage_costs(job: Job, contents: PlannedContents, ranks: int, rates: Rates | None) -> StageCosts:
    """What counts the cost of each stage, on a copy of the model without data."""
    model, device = empty_copy(job.state.model), _device(job)
    state = State(model=model, batches=job.state.batches, plan=job.state.plan, seed=job.state.seed)
    state.report.update(job.state.report)
    state.sweep = job.sweep_of(job.modifiers)
    stages = job.pipeline.outline(state).stages
    on_cpu = device.type == "cpu" if rates is None else rates.device == "cpu"
    divisible = on_cpu and all(is_divisible(job.modifiers, stage) for stage in stages)
    outline = job.pipeline.outline(state, divisible=divisible)
    forward, ratio = _forward(state, outline.stages)
    if forward is not None and forward.counted:
        _refuse_unreached(state, outline.stages, forward)
    passes = 1 if job.pipeline.shares_sweeps else len(job.passes())
    return StageCosts(
        job=job,
        state=state,
        outline=outline,
        forward=forward,
        contents=contents,
        rates=rates or measured_rates(getattr(model, "dtype", torch.float32), device),
        division=Division.of(ranks, [count_places(batch) or 1 for batch in state.batches]),
        ratio=ratio,
        passes=passes + any(modifier.needs().measuring_pass for modifier in job.modifiers),
    )


def _device(job: Job) -> torch.device:
    if job.weights is not None:
        return job.weights.device
    return next((p.device for p in job.state.model.parameters() if not p.is_meta), torch.device("cpu"))


def _forward(state: State, stages: Sequence[Any]) -> tuple[Forward | None, float]:
    """The largest batch on no data, and the tokens of all batches over its own; None where no batch runs."""
    if not state.batches or not state.sweep.observed:
        return None, 0.0
    places = [count_places(batch) or 1 for batch in state.batches]
    largest = max(range(len(places)), key=places.__getitem__)
    return forward_of(state.model, stages, state.batches[largest]), sum(places) / places[largest]


def _refuse_unreached(state: State, stages: Sequence[Stage], forward: Forward) -> None:
    """Refuse blocks whose layers are to be calibrated and that no batch runs, such as those of images.

    Batches that differ in what they hold are left to the run: one of them may reach what the largest does not.

    Raises:
        CalibrationError: names the blocks.
    """
    if len({frozenset(batch) for batch in state.batches}) > 1:
        return
    called = forward.stages.keys() | forward.layers.keys()
    names = [
        stage.name
        for stage in stages
        if stage.name in stage.modules
        and called.isdisjoint({stage.name, *(layer.name for layer in stage.every_layer)})
        and any(layer.name in state.sweep.observed for layer in stage.every_layer)
    ]
    if names:
        raise CalibrationError(
            f"no calibration batch runs {', '.join(names)}; ignore their layers, or say with sequential_targets which "
            "blocks run"
        )


def _stored(job: Job) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtype and shape of the model's tensors: those of its files, or, of a model in memory, its own."""
    if job.weights is not None:
        files = job.weights.reader
        return {name: (files.dtype(name), tuple(files.shape(name))) for name in files.names()}
    seen = {id(tensor): (name, tensor) for name, tensor in job.state.model.state_dict(keep_vars=True).items()}
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in seen.values()}


def _before(job: Job) -> int:
    """Bytes of the model's tensors as they are stored; where a source decodes them, in the dtype of the model."""
    if job.weights is None and job.origin is not None and any(p.is_meta for p in job.state.model.parameters()):
        files = CheckpointReader(job.origin.folder)  # of a compressed checkpoint
        return sum(files.nbytes(name) for name in files.names())
    decoded = job.weights is not None and not isinstance(job.weights.reader, (CheckpointReader, PickledReader))
    held = next((p.dtype for p in job.state.model.parameters() if p.is_floating_point()), None) if decoded else None
    return sum(
        prod(shape) * (held if held is not None and dtype.is_floating_point else dtype).itemsize
        for dtype, shape in _stored(job).values()
    )


def _kinds(job: Job, contents: PlannedContents) -> Iterator[LayerKind]:
    """The layers of the model, those whose names differ in numbers only together."""
    model, kinds = job.state.model, dict[Any, list[Layer]]()
    sizes = Counter[str]()
    for name, (dtype, shape) in contents.tensors.items():
        sizes[name.rpartition(".")[0]] += prod(shape) * dtype.itemsize
    for layer in find_layers(model.named_modules()):
        planned, kept = job.state.plan.get(layer.name), job.state.schemes.get(layer.name)
        scheme = kept if planned is None else planned.scheme
        names = tuple(type(claim.modifier).__name__ for claim in job.claims if layer.name in claim.names)
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", layer.name)
        rows, columns = layer.weight.shape
        kinds.setdefault((pattern, (rows, columns), scheme and describe(scheme), names), []).append(layer)
    disk = job.output.on_disk if job.output is not None else str
    seen = set[int]()  # a weight that layers share counts for the first of them
    for (pattern, shape, words, names), layers in kinds.items():
        own = {id(p): p.nbytes for one in layers for p in one.module.parameters(recurse=False)}
        before = sum(size for key, size in own.items() if key not in seen)
        seen |= own.keys()
        after = sum(sizes[disk(one.name)] for one in layers)
        yield LayerKind(
            name=pattern,
            count=len(layers),
            shape=shape,
            scheme=words,
            modifiers=names,
            before=before,
            after=after,
        )


def _left_alone(job: Job) -> Iterator[tuple[str, str]]:
    """Name and reason of what stays as it is."""
    changed = {layer.name for claim in job.claims for layer in claim.layers}
    layers = {layer.name: layer for layer in find_layers(job.state.model.named_modules())}
    for name, line in job.state.report.items():
        if name in changed or line.status == "quantized":
            continue
        yield name, line.reason or (reason_untouched(layers[name], job.claims) if name in layers else "")


def unmatched_rules(modifiers: Sequence[Modifier], state: State) -> Iterator[tuple[str, str]]:
    """Rules of `ignore` that match nothing, but for the one for routers that every command has.

    Args:
        modifiers: of a recipe.
        state: with the model, and a line of the report for every layer.
    """
    modules = [(name, class_names(module)) for name, module in state.model.named_modules()]
    modules += [(name, ()) for name in state.report]
    for modifier in modifiers:
        for pattern in modifier.ignore:
            if pattern not in DEFAULT_IGNORE[1:] and not any(matches(pattern, *one) for one in modules):
                yield type(modifier).__name__, pattern


def _engines(job: Job) -> Iterator[EngineVerdict]:
    """What engines do with the checkpoint: the worst that any of its schemes meets; nothing where none was tried."""
    if job.output is None or not was_tried(job.output.format):
        return
    schemes = {planned.scheme for planned in job.state.plan.values()} | set(job.state.schemes.values())
    online = any(isinstance(attached.attachment, OnlineRotation) for _, attached in job.announced)
    yield from engine_verdicts(schemes, online=online)


def engine_verdicts(schemes: Iterable[Scheme], *, online: bool = False) -> Iterator[EngineVerdict]:
    """What engines do with a checkpoint: the worst that any of its schemes meets.

    Args:
        schemes: of its layers.
        online: whether rotations run in the forward.
    """
    found: dict[str, list[Any]] = {}
    for scheme in schemes:
        for support in engines_for(scheme):
            found.setdefault(support.engine, []).append((support.loads, describe(scheme), support.why))
    for engine, verdicts in found.items():
        if online and engine.startswith("vLLM") and engine.endswith("CPU"):
            yield EngineVerdict(engine=engine, verdict="refuses", why="it runs no online rotation on a CPU")
            continue
        loads, words, why = min(verdicts, key=lambda verdict: {False: 0, None: 1, True: 2}[verdict[0]])
        word = {True: "loads", False: "refuses", None: "unknown"}[loads]
        yield EngineVerdict(engine=engine, verdict=word, why=why if loads else f"{words}: {why}")


def was_tried(form: Format) -> bool:
    """Whether engines were given checkpoints of this format, or of one of several."""
    tried = registry.find("formats", FORMAT) if FORMAT in registry.names("formats") else ()
    return any(isinstance(one, tried) for one in (form.forms.values() if isinstance(form, SeveralFormats) else [form]))


def _notes(job: Job, contents: PlannedContents, costs: StageCosts) -> Iterator[str]:
    forward = costs.forward
    for modifier in job.modifiers:
        if modifier.needs().measuring_pass:
            yield f"{type(modifier).__name__} decides after it has seen data: sizes are those before its decision"
    for name in contents.uncounted:
        yield f"the tensors of {name} are not counted: only data tell their shapes"
    if contents.publishes:
        yield "the format writes a container of its own: sizes are those of its tensors"
    if forward is not None and not forward.counted:
        yield "the model's forward looks at values, so operations and activations follow from the shapes of layers"
    if costs.division.ranks > 1:
        yield f"ranks are taken to receive {costs.rates.network / 1e9:g} GB a second from each other"
