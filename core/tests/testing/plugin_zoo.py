"""Observers, pipelines and formats to try the kit on: one good one each, and several that break one promise."""

from collections.abc import Iterator
from contextlib import suppress

import torch
from attrs import frozen
from torch import Tensor

from coldpress import CalibrationError, CheckpointError, SchemeError
from coldpress.plugin import Format, Observer, Pass, Pipeline, Stage, StopForward, Weights, partition

# --- observers


@frozen(kw_only=True)
class GoodObserver(Observer):
    """Smallest and largest."""

    def update(self, statistic, x):
        new = x.amin(-1), x.amax(-1)
        return new if statistic is None else self.merge(statistic, new)

    def merge(self, a, b):
        return torch.minimum(a[0], b[0]), torch.maximum(a[1], b[1])

    def range(self, statistic):
        return statistic


@frozen(kw_only=True)
class OneRangeForAll(GoodObserver):
    """Forgets that scales are not shared by all."""

    def range(self, statistic):
        return tuple(end.amin().reshape(1) for end in statistic)


@frozen(kw_only=True)
class InFloat64(GoodObserver):
    """Leaks float64."""

    def range(self, statistic):
        return tuple(end.double() for end in statistic)


@frozen(kw_only=True)
class ReachesFar(GoodObserver):
    """Leaves room that nobody asked for."""

    def range(self, statistic):
        return statistic[0] * 1.004, statistic[1] * 1.004


@frozen(kw_only=True)
class WritesIntoStatistic(GoodObserver):
    """Saves memory in the wrong place."""

    def merge(self, a, b):
        a[0].copy_(torch.minimum(a[0], b[0]))
        return a[0], torch.maximum(a[1], b[1])


@frozen(kw_only=True)
class FirstWins(GoodObserver):
    """Merges as if the second had not been; sees batches well."""

    def update(self, statistic, x):
        new = x.amin(-1), x.amax(-1)
        return new if statistic is None else GoodObserver.merge(self, statistic, new)

    def merge(self, a, b):
        return a


@frozen(kw_only=True)
class MergesToTheMean(FirstWins):
    """The mean of two ranges is not the range of both."""

    def merge(self, a, b):
        return (a[0] + b[0]) / 2, (a[1] + b[1]) / 2


@frozen(kw_only=True)
class CutsTails(GoodObserver):
    """Half of the range is enough for everybody."""

    def update(self, statistic, x):
        return GoodObserver.update(self, statistic, x / 2)


@frozen(kw_only=True)
class DividesByRange(GoodObserver):
    """Divides by the width of the range, which is zero for zeros."""

    def range(self, statistic):
        widest = torch.maximum(-statistic[0].clamp(max=0), statistic[1].clamp(min=0))
        return statistic[0] / widest * widest, statistic[1] / widest * widest


@frozen(kw_only=True)
class RollsDice(GoodObserver):
    """Samples."""

    def range(self, statistic):
        return statistic[0] * (1 - 0.004 * torch.rand(())), statistic[1]


# --- pipelines


@frozen(kw_only=True, eq=False)
class GoodPipeline(Pipeline):
    """Part by part."""

    def stages(self, state) -> Iterator[Stage]:
        yield from partition(state.model)

    def sweep(self, state, stage) -> Iterator[Pass]:
        for index, batch in enumerate(state.batches):
            try:
                with suppress(StopForward):
                    state.model(**batch)
            except IndexError as error:
                raise CalibrationError(f"batch {index}: {error}") from error
            yield Pass(index)


@frozen(kw_only=True, eq=False)
class DropsHead(GoodPipeline):
    """The last part is not so important."""

    def stages(self, state):
        yield from partition(state.model)[:-1]


@frozen(kw_only=True, eq=False)
class RenamesModules(GoodPipeline):
    """Knows better names."""

    def stages(self, state):
        for stage in partition(state.model):
            yield Stage(stage.name, stage.index, {name.upper(): module for name, module in stage.modules.items()})


@frozen(kw_only=True, eq=False)
class ForgetsHalf(GoodPipeline):
    """What comes first in a stage is enough of it."""

    def parts(self, state, stage):
        some = list(stage.modules.items())[: len(stage.modules) // 2]
        yield Stage(stage.name, stage.index, dict(some))


@frozen(kw_only=True, eq=False)
class Backwards(GoodPipeline):
    """Last batch first."""

    def sweep(self, state, stage):
        yield from reversed(list(GoodPipeline.sweep(self, state, stage)))


@frozen(kw_only=True, eq=False)
class DropsMask(GoodPipeline):
    """Rows are all of one length, are they not?"""

    def sweep(self, state, stage):
        for index, batch in enumerate(state.batches):
            try:
                with suppress(StopForward):
                    state.model(input_ids=batch["input_ids"].flip(1))
            except IndexError as error:
                raise CalibrationError(str(error)) from error
            yield Pass(index)


@frozen(kw_only=True, eq=False)
class LeavesHooks(GoodPipeline):
    """Hooks the model, and unhooks it if all goes to the end."""

    def stages(self, state):
        handle = state.model.register_forward_pre_hook(lambda *_: None)
        yield from partition(state.model)
        handle.remove()


@frozen(kw_only=True, eq=False)
class UnhooksWhenHappy(GoodPipeline):
    """Forgets its hook when a sweep is left early."""

    def sweep(self, state, stage):
        handle = state.model.register_forward_pre_hook(lambda *_: None)
        yield from GoodPipeline.sweep(self, state, stage)
        handle.remove()


@frozen(kw_only=True, eq=False)
class BareErrors(GoodPipeline):
    """Lets torch speak for itself."""

    def sweep(self, state, stage):
        for index, batch in enumerate(state.batches):
            with suppress(StopForward):
                state.model(**batch)
            yield Pass(index)


@frozen(kw_only=True, eq=False)
class NeverEnough(GoodPipeline):
    """Runs to the end, or not at all."""

    def sweep(self, state, stage):
        for index, batch in enumerate(state.batches):
            try:
                state.model(**batch)
            except IndexError as error:
                raise CalibrationError(f"batch {index}: {error}") from error
            yield Pass(index)


@frozen(kw_only=True, eq=False)
class SkipsBadBatches(GoodPipeline):
    """Counts a batch that failed as seen."""

    def sweep(self, state, stage):
        for index, batch in enumerate(state.batches):
            with suppress(IndexError, StopForward):
                state.model(**batch)
            yield Pass(index)


# --- formats


@frozen(kw_only=True)
class GoodFormat(Format):
    """Writes codes as they are, for one scale a row in eight bits."""

    def check(self, scheme, name, shape):
        inputs, args = scheme.input_activations, scheme.weights
        if args is None or args.num_bits != 8 or args.strategy != "channel" or (inputs and not inputs.dynamic):
            raise SchemeError(f"{name}: only eight bits with one scale a row, and no static inputs")

    def tensors(self, quantized):
        return {"q": quantized.codes, "s": quantized.scale, "z": quantized.zero_point}

    def config(self, schemes, ignore, attachments=()):
        return {"quant_method": "good", "layers": {name: scheme.to_dict() for name, scheme in schemes.items()}}

    def read(self, config):
        from coldpress import Scheme

        def lookup(name, classes):
            return Scheme.from_dict(config["layers"][name]) if name in config["layers"] else None

        return lookup

    def restore(self, tensors, scheme):
        from coldpress.plugin import Quantized

        if "q" not in tensors:
            raise CheckpointError("no codes")
        return Quantized(scheme, codes=tensors["q"], scale=tensors["s"], zero_point=tensors["z"])


@frozen(kw_only=True)
class RefusesAll(GoodFormat):
    """Cannot write anything."""

    def check(self, scheme, name, shape):
        raise SchemeError(f"{name}: no")


@frozen(kw_only=True)
class NamesNoLayer(GoodFormat):
    """Leaves the search to the user."""

    def check(self, scheme, name, shape):
        try:
            GoodFormat.check(self, scheme, name, shape)
        except SchemeError:
            raise SchemeError("no") from None


@frozen(kw_only=True)
class HalvesScales(GoodFormat):
    """Scales need not be that exact."""

    def tensors(self, quantized):
        return {**GoodFormat.tensors(self, quantized), "s": quantized.scale.half()}


@frozen(kw_only=True)
class ForgetsZeroPoint(GoodFormat):
    """Everything is symmetric."""

    def restore(self, tensors, scheme):
        from attrs import evolve

        quantized = GoodFormat.restore(self, tensors, scheme)
        return evolve(quantized, zero_point=torch.zeros_like(quantized.zero_point))


@frozen(kw_only=True)
class QuantizesAll(GoodFormat):
    """Reads a scheme for every layer, also for one that has none."""

    def read(self, config):
        lookup = GoodFormat.read(self, config)
        first = next(iter(config["layers"]))
        return lambda name, classes: lookup(name, classes) or lookup(first, classes)


@frozen(kw_only=True)
class RaisesKeyError(GoodFormat):
    """Lets a missing tensor speak for itself."""

    def restore(self, tensors: dict[str, Tensor], scheme):
        from coldpress.plugin import Quantized

        return Quantized(scheme, codes=tensors["q"], scale=tensors["s"], zero_point=tensors["z"])


@frozen(kw_only=True)
class CountsScales(GoodFormat):
    """Takes every number for a weight."""

    def count_weights(self, stored, scheme):
        return {suffix: one.nbytes() // one.dtype.itemsize for suffix, one in stored.items() if suffix in "qsz"}


@frozen(kw_only=True)
class ChangesItsMind(GoodFormat):
    """Completes what it has completed."""

    def complete(self, schemes, shapes):
        from attrs import evolve

        def other(args):
            return args and evolve(args, observer=None if args.observer else "memoryless_minmax")

        return {name: evolve(one, weights=other(one.weights)) for name, one in schemes.items()}


class OneFile(Weights):
    """Everything in one file of torch."""

    def __init__(self, folder):
        self.files = [folder / "all.pt"]
        self._tensors = torch.load(self.files[0])

    def names(self):
        return list(self._tensors)

    def shape(self, name):
        return tuple(self._tensors[name].shape)

    def dtype(self, name):
        return self._tensors[name].dtype

    def read(self, name):
        return self._tensors[name].clone()


@frozen(kw_only=True)
class GoodPublisher(GoodFormat):
    """A container of its own, and how many weights are in it."""

    def count_weights(self, stored, scheme):
        return {"q": stored["q"].shape[0] * stored["q"].shape[1], "s": 0, "z": 0} if "q" in stored else {}

    def publish(self, parts, folder, state):
        torch.save({name: parts.read(name) for name in parts.names()}, folder / "all.pt")

    def open(self, folder):
        return OneFile(folder)


@frozen(kw_only=True)
class PublishesHalves(GoodPublisher):
    """Saves room where nobody looks."""

    def publish(self, parts, folder, state):
        tensors = {name: parts.read(name) for name in parts.names()}
        halved = {name: x.half() if x.dtype == torch.float32 else x for name, x in tensors.items()}
        torch.save(halved, folder / "all.pt")


@frozen(kw_only=True)
class PublishesIntoTheVoid(GoodPublisher):
    """Can be written only."""

    def open(self, folder):
        return None


GOOD: tuple[type, ...] = (GoodObserver, GoodPipeline, GoodFormat, GoodPublisher)

# class -> the one check that it fails
BAD: dict[type, str] = {
    OneRangeForAll: "range_shapes",
    InFloat64: "range_shapes",
    ReachesFar: "stays_within",
    WritesIntoStatistic: "changes_nothing",
    FirstWins: "merge_does_not_care_who_is_first",
    MergesToTheMean: "merge_is_seeing_all",
    CutsTails: "constants",
    DividesByRange: "zeros",
    RollsDice: "deterministic",
    DropsHead: "every_tensor_in_one_stage",
    RenamesModules: "stages_hold_the_models_modules",
    ForgetsHalf: "parts_are_the_stage",
    Backwards: "sweeps_once_in_order",
    DropsMask: "inputs_are_the_models_own",
    LeavesHooks: "leaves_no_trace",
    UnhooksWhenHappy: "undoes_after_an_error",
    BareErrors: "bad_batch_is_reported",
    NeverEnough: "takes_enough",
    SkipsBadBatches: "bad_batch_is_reported",
    RefusesAll: "writes_something",
    NamesNoLayer: "refuses_by_name",
    HalvesScales: "round_trip",
    ForgetsZeroPoint: "round_trip",
    QuantizesAll: "config_reads_back",
    RaisesKeyError: "missing_tensor_is_reported",
    CountsScales: "counts_its_weights",
    ChangesItsMind: "completes_once",
    PublishesHalves: "publishes_every_tensor",
    PublishesIntoTheVoid: "publishes_every_tensor",
}
