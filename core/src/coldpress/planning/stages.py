"""What a stage takes: the bytes that it holds at once, and the seconds of its parts."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from attrs import fields, frozen, has
from torch import Tensor

from coldpress.errors import ColdpressError
from coldpress.modifier import Cost
from coldpress.numerics import scale_shape
from coldpress.pipeline import Outline
from coldpress.planned import no_calls
from coldpress.planning.contents import PlannedContents, nbytes_of
from coldpress.planning.division import ALONE, Division
from coldpress.planning.forward import TROUBLE, Forward, StageForward, counted
from coldpress.planning.prediction import StagePrediction
from coldpress.planning.rates import Rates
from coldpress.routed import Observed
from coldpress.run.job import Job
from coldpress.stage import Layer, Stage
from coldpress.state import State
from coldpress.statistic import Statistic, statistic_for

Requests = Mapping[int, Sequence[tuple[Statistic, int]]]
"""Number of an input to the statistics that are collected of it, each with the width."""


@frozen(eq=False)
class StageCosts:
    """Counts what each stage of a job takes.

    Attributes:
        job: that is planned.
        state: of the job, on the meta device, with its plan.
        outline: of the pipeline.
        forward: one batch through the model; None where no batch runs.
        contents: that will be written.
        rates: of the machine.
        ratio: tokens of all batches over those of that batch.
        passes: how often the pipeline goes over the model.
        division: of the run among ranks.
    """

    job: Job
    state: State
    outline: Outline
    forward: Forward | None
    contents: PlannedContents
    rates: Rates
    ratio: float
    passes: int
    division: Division = ALONE

    def of(self, stage: Stage) -> StagePrediction:
        """One stage."""
        ran = self._forward(stage)
        requests, groups = self._requests(stage), self._groups(stage)
        each, flops, moved = self._statistics(requests, stage)
        sizes = max(each, default=0) if self.outline.in_parts else sum(each)
        costs = [self._costs(group) for group in groups]
        parts = {
            "weights": self._weights(stage),
            "codes": self._codes(stage),
            "originals": self._originals(stage),
            "statistics": sizes,
            "forward": 0 if ran is None else ran.peak,
            "solving": max((cost.nbytes for found in costs for cost in found), default=0),
            "activations": self._waiting(stage, ran),
            "written": self._written(stage),
        }
        device = self._is_on_device()
        on_device = sum(parts.values()) - parts["activations"] - parts["written"] if device else 0
        exchanged = self.division.exchanged(
            each, parts["codes"], self.ratio * (self.forward.tokens if self.forward else 0)
        )
        seconds = self._seconds(stage, ran, flops, moved, costs)
        return StagePrediction(
            name=stage.name,
            seconds=seconds + exchanged / self.rates.network * self.passes,
            exchanged=exchanged,
            host=sum(parts.values()) - on_device,
            device=on_device,
            parts={name: size for name, size in parts.items() if size},
        )

    def _forward(self, stage: Stage) -> StageForward | None:
        observed = not self.state.sweep.observed.isdisjoint(stage.modules)
        if self.forward is None or not (observed or self._is_before_observed(stage)):
            return None
        return self.forward.stages.get(stage.name)

    def _is_before_observed(self, stage: Stage) -> bool:
        later = [one for one in self.outline.stages if one.index > stage.index]
        return any(not self.state.sweep.observed.isdisjoint(one.modules) for one in later)

    def _is_on_device(self) -> bool:
        return self.rates.device != "cpu"

    def _weights(self, stage: Stage) -> int:
        """Bytes of weights that are read for the stage; those of a model in memory are there already.

        A model that has no weights yet and is not streamed will be in memory as a whole.
        """
        if self.job.weights is not None:
            return _parameter_bytes(stage)
        return sum(parameter.nbytes for parameter in self.job.state.model.parameters() if parameter.is_meta)

    def _codes(self, stage: Stage) -> int:
        """Bytes of codes and scales until they are written."""
        total = 0
        for layer in stage.every_layer:
            scheme = self.state.scheme_of(layer)
            if scheme is not None and scheme.weights is not None:
                shape = tuple(layer.weight.shape)
                scales = prod(scale_shape(shape, scheme.weights))
                total += prod(shape) + scales * (layer.weight.dtype.itemsize + 1)
        return total

    def _written(self, stage: Stage) -> int:
        """Bytes of tensors that are made for the output until they are written; others are those of the model."""
        own = {(p.dtype, tuple(p.shape)) for module in stage.modules.values() for p in module.parameters(recurse=False)}
        return sum(nbytes_of(kind) for kind in self.contents.stages.get(stage.name, {}).values() if kind not in own)

    def _originals(self, stage: Stage) -> int:
        """Bytes of the copy of a stage that modifiers need."""
        needed = any(modifier.needs().original_weights for modifier in self.job.modifiers)
        return _parameter_bytes(stage) if needed else 0

    def _waiting(self, stage: Stage, ran: StageForward | None) -> int:
        """Bytes of what all batches hold in front of the stage, or inside of it."""
        if ran is None or self.forward is None:
            return 0
        inside = [self.forward.layers[one.name].held for one in stage.every_layer if one.name in self.forward.layers]
        held = max([ran.arguments, *inside]) if self.outline.in_parts else ran.arguments
        copies = 2 if self.state.sweep.original_inputs or self.outline.keeps_outputs else 1
        return 0 if self.outline.on_disk else int(held * self.ratio * copies * self.division.share)

    def _requests(self, stage: Stage) -> Requests:
        """What modifiers request in `initialize`, fired on the stage without data."""
        found: dict[int, list[tuple[Statistic, int]]] = {}
        for modifier in self.job.modifiers:
            if not modifier.needs().data:
                continue
            recorder = _Recorder()
            self.state.begin_pass(self.state.sweep, recorder, no_calls)
            try:
                self.job.hooks.fire("initialize", modifier, self.state, stage)
            except (*TROUBLE, ColdpressError):
                continue
            for layer, statistic in recorder.requested:
                if not isinstance(layer, Layer):
                    continue  # a range of keys or values, or a few sums of each expert
                held = found.setdefault(self._input(layer), [])
                if (statistic, layer.weight.shape[1]) not in held:
                    held.append((statistic, layer.weight.shape[1]))
        return found

    def _input(self, layer: Layer) -> int:
        call = None if self.forward is None else self.forward.layers.get(layer.name)
        return hash(layer.name) if call is None else call.input

    def _groups(self, stage: Stage) -> list[list[Layer]]:
        """The layers of a stage that are compressed, those that read one input together."""
        groups: dict[int, list[Layer]] = {}
        for layer in stage.every_layer:
            if any(layer.name in claim.names for claim in self.job.claims):
                groups.setdefault(self._input(layer), []).append(layer)
        return list(groups.values())

    def _costs(self, layers: Sequence[Layer]) -> list[Cost]:
        """Of each modifier that changes these layers; what they hold is not held at once."""
        tokens = int(self.ratio * self.forward.tokens) if self.forward is not None else 0
        found = []
        for claim in self.job.claims:
            own = [layer for layer in layers if layer.name in claim.names]
            if own:
                found.append(claim.modifier.cost(own, tokens))
        return found

    def _statistics(self, requests: Requests, stage: Stage) -> tuple[list[int], float, float]:
        """Bytes that the statistics of each input hold, and operations and bytes moved to collect them."""
        if self.forward is None or not requests:
            return [], 0.0, 0.0
        dtype = getattr(self.state.model, "dtype", torch.float32)
        per_input = []
        for wanted in requests.values():
            found = [_collected(one, width, self.forward.tokens, self.ratio, dtype) for one, width in wanted]
            per_input.append(tuple(map(sum, zip(*found, strict=True))))
        sizes = [int(size) for size, _, _ in per_input]
        return sizes, sum(flops for _, flops, _ in per_input), sum(moved for _, _, moved in per_input)

    def _seconds(
        self, stage: Stage, ran: StageForward | None, flops: float, moved: float, costs: Sequence[Sequence[Cost]]
    ) -> float:
        rates = self.rates
        seconds = (flops / rates.wide_products + moved / rates.passes) * self.division.share
        if ran is not None:
            once = ran.flops / rates.products + ran.moved / rates.passes
            seconds += once * self.ratio * self.outline.forwards * self.division.share
        seconds += self._solving(costs)
        read = _parameter_bytes(stage) / rates.disk if self.job.weights is not None else 0.0
        written = self.contents.stage_nbytes(stage.name) / rates.disk
        return (seconds + read) * self.passes + 2 * written

    def _solving(self, costs: Sequence[Sequence[Cost]]) -> float:
        """Seconds of what modifiers make of the layers of each input, of the rank that takes longest."""
        shared = [sum(self._time_of(cost) for cost in found if cost.divided) for found in costs]
        alone = sum(self._time_of(cost) for found in costs for cost in found if not cost.divided)
        # in parts one input after the other is solved: there is nothing to divide
        return alone + (sum(shared) if self.outline.in_parts else self.division.busiest(shared))

    def _time_of(self, cost: Cost) -> float:
        rates = self.rates
        return cost.flops / rates.wide_products + cost.elements * 4 / rates.passes + cost.steps / rates.steps


class _Recorder:
    """Statistics that are requested and never collected."""

    def __init__(self) -> None:
        self.requested: list[tuple[Observed, Statistic]] = []

    def request(self, layer: Observed, which: str | Statistic) -> None:
        """Note it."""
        self.requested.append((layer, statistic_for(which)))

    def __getattr__(self, name: str) -> Any:
        raise LookupError(f"statistics have no {name} before a batch has run")


_known: dict[Any, tuple[int, float, float]] = {}


def _collected(
    statistic: Statistic, width: int, tokens: int, ratio: float, dtype: torch.dtype
) -> tuple[int, float, float]:
    """Bytes that a statistic holds, and operations and bytes moved to collect it, by its own methods on no data."""
    key = (repr(statistic), width, tokens, dtype)
    if key not in _known:
        _known[key] = _collect(statistic, width, tokens, dtype)
    size, flops, moved = _known[key]
    return size, flops * ratio, moved * ratio


def _collect(statistic: Statistic, width: int, tokens: int, dtype: torch.dtype) -> tuple[int, float, float]:
    x = torch.empty(tokens, width, dtype=dtype, device="meta")

    def run() -> Any:
        if statistic.needs_original_inputs:
            return statistic.finish(statistic.update_with_original(None, x, x))
        return statistic.finish(statistic.update(None, x))

    try:
        value, flops, moved = counted(run)
    except TROUBLE:  # it looks at values
        return 0, 0.0, 4.0 * tokens * width
    return sum(tensor.nbytes for tensor in _tensors(value)), flops, float(moved)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif has(type(value)):
        yield from _tensors([getattr(value, one.name) for one in fields(type(value))])


def _parameter_bytes(stage: Stage) -> int:
    return sum(p.nbytes for module in stage.modules.values() for p in module.parameters(recurse=False))
