"""What `model_free_ptq` and `convert` will write, hold and take: files of the output are its stages."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from attrs import asdict, field, frozen
from torch import Tensor, nn

from coldpress.checkpoint.shard import header_of
from coldpress.dataflow.fused import FusedLayers, split_groups
from coldpress.modifier import Cost, Modifier
from coldpress.numerics import scale_shape
from coldpress.planning.contents import Kind, nbytes_of
from coldpress.planning.predict import SPREAD, engine_verdicts, unmatched_rules, was_tried
from coldpress.planning.prediction import LayerKind, Prediction, StagePrediction
from coldpress.planning.rates import Rates, measured_rates
from coldpress.report.memory import memory_now
from coldpress.schemes import describe
from coldpress.shardwise.job import ShardwiseJob
from coldpress.shardwise.kinds import Kinds
from coldpress.shardwise.plan import Fates, Shard, Unit
from coldpress.stage import Layer, class_names


def predict_model_free(job: ShardwiseJob) -> Prediction:
    """What is known of a job without a model; nothing is written, and of layers that are kept one of a kind is read.

    Args:
        job: as it was prepared.
    """
    fates, shards = job.plan()
    files = _contents(job, fates, shards)
    opened, state = job.opened, job.state
    costs = _Costs(job, fates, files, measured_rates(job.dtype(), job.device))
    nbytes = sum(_file_nbytes(tensors) for tensors in files.values())
    return Prediction(
        weights=sum(prod(opened.weights.shape(name)) for name in opened.weights.names()),
        before=sum(opened.stored.nbytes(name) for name in opened.stored.names()),
        after=sum(nbytes_of(kind) for tensors in files.values() for kind in tensors.values()),
        files=nbytes,
        disk=nbytes,  # the files of the run are linked into the output
        now=memory_now() or 0,
        stages=tuple(costs.of(shard) for shard in shards),
        spread=SPREAD,
        kinds=tuple(_kinds(job, fates, files)),
        left_alone=tuple(_left_alone(job, fates)),
        unmatched=tuple(unmatched_rules(job.job.modifiers, state)),
        split=tuple(split_groups(state.model, fates.schemes, lambda: state.fact(FusedLayers))),
        data=None,
        engines=tuple(engine_verdicts(set(fates.schemes.values()))) if was_tried(job.form) else (),
        rates=asdict(costs.rates),
        notes=(),
    )


def _contents(job: ShardwiseJob, fates: Fates, shards: Sequence[Shard]) -> dict[str, dict[str, Kind]]:
    """Name of a file to its tensors, by the code that places them in a run."""
    kinds = Kinds(job.unit_run(fates))
    return {shard.name: kinds.of(shard) for shard in shards}


def _file_nbytes(tensors: Mapping[str, Kind]) -> int:
    _, header = header_of(tensors)
    return len(header) + sum(map(nbytes_of, tensors.values()))


@frozen(eq=False)
class _Costs:
    """Counts what each file of the output takes.

    Attributes:
        job: that is planned.
        fates: of all layers.
        files: name of a file to its tensors.
        rates: of the machine.
    """

    job: ShardwiseJob
    fates: Fates
    files: Mapping[str, Mapping[str, Kind]]
    rates: Rates
    _claims: Mapping[str, Sequence[Modifier]] = field(init=False)

    @_claims.default
    def _by_layer(self) -> Mapping[str, Sequence[Modifier]]:
        found: dict[str, list[Modifier]] = {}
        for claim in self.job.job.claims:
            for layer in claim.layers:
                found.setdefault(layer.name, []).append(claim.modifier)
        return found

    def of(self, shard: Shard) -> StagePrediction:
        """One file: as many units as there are workers are in memory at the same time."""
        at_once = min(self.job.max_workers, max(len(shard.units), 1))
        owners = Counter[str]()
        for name, kind in self.files[shard.name].items():
            owners[name.rpartition(".")[0]] += nbytes_of(kind)
        per_unit = [self._parts(unit, owners) for unit in shard.units]
        parts = {name: at_once * max(one[name] for one in per_unit) for name in per_unit[0]} if per_unit else {}
        device = sum(parts.values()) - parts["written"] if parts and self.rates.device != "cpu" else 0
        return StagePrediction(
            name=shard.name,
            seconds=self._seconds(shard),
            host=sum(parts.values()) - device,
            device=device,
            parts={name: size for name, size in parts.items() if size},
        )

    def _parts(self, unit: Unit, written: Mapping[str, int]) -> dict[str, int]:
        """Bytes that a unit holds, by what they are."""
        changed = [name for name in unit.layers if self.fates.of[name] == "changed"]
        codes = 0
        for name in unit.layers:
            scheme = self.fates.schemes.get(name)
            if scheme is not None and scheme.weights is not None:
                shape = tuple(self._weight(name).shape)
                codes += prod(shape) + prod(scale_shape(shape, scheme.weights)) * (self.job.dtype().itemsize + 1)
        return {
            "weights": sum(self._weight(name).nbytes for name in (*changed, *unit.beside)),
            "codes": codes,
            "solving": max((self._cost([name]).nbytes for name in changed), default=0),
            "written": sum(written[name] for name in unit.layers),
        }

    def _cost(self, names: Sequence[str]) -> Cost:
        """Of all modifiers that change these layers."""
        found = [Cost()]
        for name in names:
            found += [modifier.cost([self._layer(name)], 0) for modifier in self._claims.get(name, ())]
        return Cost(
            flops=sum(cost.flops for cost in found),
            elements=sum(cost.elements for cost in found),
            nbytes=max(cost.nbytes for cost in found),
        )

    def _seconds(self, shard: Shard) -> float:
        changed = [name for unit in shard.units for name in unit.layers if self.fates.of[name] == "changed"]
        cost, rates = self._cost(changed), self.rates
        decoded = sum(
            self._weight(name).numel() * 4
            for unit in shard.units
            for name in unit.layers
            if self.fates.of[name] == "decoded"
        )
        read = sum(self._weight(name).nbytes for name in changed)
        written = sum(map(nbytes_of, self.files[shard.name].values()))
        work = cost.flops / rates.wide_products + (cost.elements * 4 + decoded) / rates.passes
        return work + (read + 2 * written) / rates.disk

    def _weight(self, name: str) -> Tensor:
        weight: Tensor = self.job.outline.model.get_submodule(name).weight  # type: ignore[assignment]
        return weight

    def _layer(self, name: str) -> Layer:
        module: nn.Module = self.job.outline.model.get_submodule(name)
        return Layer(name, module, class_names(module))


def _kinds(job: ShardwiseJob, fates: Fates, files: Mapping[str, Mapping[str, Kind]]) -> Iterator[LayerKind]:
    """The layers, those whose names differ in numbers only together."""
    sizes, tensors = Counter[str](), set[str]()
    for contents in files.values():
        tensors |= contents.keys()
        for name, kind in contents.items():
            sizes[name.rpartition(".")[0]] += nbytes_of(kind)
    changing: dict[str, list[str]] = {}
    for claim in job.job.claims:
        for layer in claim.layers:
            changing.setdefault(layer.name, []).append(type(claim.modifier).__name__)
    kinds: dict[Any, list[str]] = {}
    for name, matrix in job.outline.matrices.items():
        scheme = fates.schemes.get(name)
        names = tuple(changing.get(name, ())) if fates.of[name] == "changed" else ()
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
        rows, columns = matrix.shape
        kinds.setdefault((pattern, (rows, columns), scheme and describe(scheme), names), []).append(name)
    for (pattern, shape, words, names), layers in kinds.items():
        dense = prod(shape) * job.dtype().itemsize
        joint = [name for name in layers if job.outline.matrices[name].tensor in tensors and name not in sizes]
        yield LayerKind(
            name=pattern,
            count=len(layers),
            shape=shape,
            scheme=words,
            modifiers=names,
            before=dense * len(layers),
            after=sum(sizes[name] for name in layers) + dense * len(joint),
        )


def _left_alone(job: ShardwiseJob, fates: Fates) -> Iterator[tuple[str, str]]:
    """Name and reason of what stays as it is, or is written whole."""
    for name, line in job.state.report.items():
        if fates.of.get(name) not in ("changed", "kept"):
            yield name, line.reason or ""
