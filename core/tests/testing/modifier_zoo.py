"""Modifiers to try the kit on: three that keep every promise, and many that break exactly one."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from attrs import evolve, field, frozen
from attrs.validators import ge, lt
from torch import Tensor

from coldpress import CalibrationError
from coldpress.numerics import quantize
from coldpress.plugin import (
    PRUNES,
    RESCALE,
    TRANSFORMS,
    Batch,
    Decision,
    Layer,
    Lifecycle,
    Modifier,
    Needs,
    Quantizer,
    Stage,
    State,
    Statistic,
    Training,
    hookimpl,
    weight_qparams,
)


def prune(weight: Tensor, norm: Tensor, sparsity: float) -> Tensor:
    """Zero the share `sparsity` of each row with the smallest |weight| * norm, [O, I], [I] -> [O, I]."""
    drop = int(weight.shape[1] * sparsity)
    order = (weight.abs() * norm).argsort(dim=1)
    return weight.scatter(1, order[:, :drop], 0)


# --- good ones


@frozen(kw_only=True, eq=False)
class GoodPruner(Modifier):
    """Prune each row where weights times input norms are small.

    Attributes:
        sparsity: share of the weights of a row to drop.
    """

    traits: ClassVar[frozenset[str]] = frozenset({PRUNES})

    sparsity: float = field(default=0.5, validator=[ge(0.0), lt(1.0)])

    def needs(self):
        return Needs(data=True)

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            state.scratch[self, layer] = None

    @hookimpl
    def calibrate_batch(self, state: State, stage: Stage, batch: Batch) -> None:
        for layer in self.layers(stage):
            energy = self.energy(batch.inputs[layer.name].float())  # [I]
            seen = state.scratch[self, layer]
            state.scratch[self, layer] = energy if seen is None else self.add(seen, energy)

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            energy = self.remembered(state, layer)
            self.write(state, layer, prune(layer.weight, energy.sqrt(), self.sparsity))

    def energy(self, x: Tensor) -> Tensor:
        return x.pow(2).sum(0)

    def add(self, seen: Tensor, energy: Tensor) -> Tensor:
        return seen + energy

    def remembered(self, state: State, layer: Layer) -> Tensor:
        energy = state.scratch.pop(self, layer)
        if energy is None:
            raise CalibrationError(f"{layer.name} saw no token")
        return energy

    def write(self, state: State, layer: Layer, weight: Tensor) -> None:
        state.set_weight(layer, weight.to(layer.weight.dtype))


@frozen(kw_only=True, eq=False)
class GoodQuantizer(Quantizer):
    """Round to nearest."""

    scheme: str = "W4A16"

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            rest = self.quantized(state, layer)
            scale, zero_point = weight_qparams(layer.weight, rest.scheme.weights)
            codes = quantize(layer.weight, scale, zero_point, rest.scheme.weights)
            state.set_quantized(layer, evolve(rest, codes=codes, scale=scale, zero_point=zero_point))


@frozen(kw_only=True, eq=False)
class GoodMover(Modifier):
    """Make the gate's neighbour larger and what follows it smaller.

    Attributes:
        factor: by how much.
    """

    traits: ClassVar[frozenset[str]] = frozenset({TRANSFORMS})

    targets: list[str] = field(factory=lambda: ["re:.*up_proj"])
    factor: float = 4.0

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            follower = stage.modules[layer.name.replace("up_proj", "down_proj")]
            layer.weight.mul_(self.factor)
            follower.weight.div_(self.factor)


@frozen(kw_only=True, eq=False)
class GoodColumnPruner(Modifier):
    """Prune each row by a statistic that core collects, as most modifiers do.

    Attributes:
        sparsity: share of the weights of a row to drop.
    """

    traits: ClassVar[frozenset[str]] = frozenset({PRUNES})

    sparsity: float = 0.5

    def needs(self):
        return Needs(data=True)

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            state.request(layer, "second_moment")
            state.scratch[self, layer] = layer.weight.clone()

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            norm = state.require(layer, "second_moment").mean.sqrt()  # [I]
            state.set_weight(layer, self.pruned(state, layer, norm, state.scratch.pop(self, layer)))

    def pruned(self, state: State, layer: Layer, norm: Tensor, kept: Tensor) -> Tensor:
        return prune(layer.weight, norm, self.sparsity)


@frozen(kw_only=True, eq=False)
class GoodGlobalPruner(Modifier):
    """Zero the smallest weights of the whole model: its sparsity is that of all layers together.

    Attributes:
        sparsity: share of all claimed weights to drop.
    """

    traits: ClassVar[frozenset[str]] = frozenset({PRUNES})

    sparsity: float = 0.5

    def needs(self) -> Needs:
        return Needs(measuring_pass=True)

    def measure(self, state: State, stage: Stage) -> list[int]:
        sizes = [layer.weight.abs().flatten() for layer in self.layers(stage)]
        return torch.histc(torch.cat([torch.empty(0), *sizes]), 4096, min=0, max=1).tolist()

    def decide(self, state: State, measured: list[list[float]]) -> Decision:
        counts = torch.tensor(measured).sum(0).cumsum(0)
        return Decision(value=int((counts <= self.sparsity * counts[-1]).sum()) / 4096)

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            state.set_weight(layer, layer.weight * (layer.weight.abs() >= state.decision(self)))


@frozen(kw_only=True, eq=False)
class GoodComparer(Modifier):
    """Scales weights by how much larger inputs are than those of the original model."""

    traits: ClassVar[frozenset[str]] = frozenset({PRUNES})

    def needs(self) -> Needs:
        return Needs(data=True, original_inputs=True)

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            state.request(layer, Ratio())

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            seen, original = state.require(layer, Ratio())
            state.set_weight(layer, prune(layer.weight, (seen + original).sqrt(), 0.25))


@frozen(kw_only=True)
class Ratio(Statistic):
    """Energies of channels, here and in the original model."""

    needs_original_inputs: ClassVar[bool] = True
    supports: ClassVar[frozenset[str]] = frozenset({RESCALE})

    def update_with_original(self, value, x, original):
        new = torch.stack([one.float().square().sum(0) for one in (x, original)])
        return new if value is None else value + new

    def merge(self, a, b):
        return a + b

    def rescale(self, value, scale):
        return value / scale.square()


@frozen(kw_only=True, eq=False)
class WholeModelOnly(GoodPruner):
    """Works where one stage is the whole model, and nowhere else."""

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        if stage.name != "model":
            raise CalibrationError("choose the pipeline basic")
        for layer in self.layers(stage):
            energy = self.remembered(state, layer)
            self.write(state, layer, prune(layer.weight, energy.sqrt(), self.sparsity))


# --- settings and hooks


@frozen(kw_only=True, eq=False)
class MisspeltHook(GoodPruner):
    """finalise is no hook."""

    @hookimpl
    def finalise(self, state: State, stage: Stage) -> None: ...


@frozen(kw_only=True, eq=False)
class UnmarkedHook(GoodPruner):
    """Nobody calls finalize."""

    def finalize(self, state: State, stage: Stage) -> None: ...


@frozen(kw_only=True, eq=False)
class EagerHook(GoodPruner):
    """The recipe's order is not good enough for it."""

    @hookimpl(tryfirst=True)
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            self.write(state, layer, prune(layer.weight, self.remembered(state, layer).sqrt(), self.sparsity))


@frozen(kw_only=True)
class EqualTwins(GoodPruner):
    """Two of it are one."""


@frozen(kw_only=True, eq=False)
class WorkingProperty(GoodPruner):
    """Works when somebody looks."""

    @property
    def kept(self) -> float:
        return 1 - self.sparsity


@frozen(kw_only=True, eq=False)
class Undocumented(GoodPruner):
    """Has a secret."""

    secret: int = 0


class Undecorated(GoodPruner):
    """Has a setting that is none."""

    strength: float = 0.5


@frozen(kw_only=True, eq=False)
class Unwritable(GoodPruner):
    """Holds what a recipe cannot say.

    Attributes:
        mask: a tensor.
    """

    mask: Tensor = field(factory=lambda: torch.ones(1))


# --- what a run leaves and repeats


_SEEN: dict[str, Tensor] = {}


@frozen(kw_only=True, eq=False)
class RemembersOnItself(GoodPruner):
    """Adds up beyond the end of a run."""

    def remembered(self, state: State, layer: Layer) -> Tensor:
        energy = state.scratch.pop(self, layer)
        if energy is None:
            raise CalibrationError(f"{layer.name} saw no token")
        _SEEN[layer.name] = _SEEN.get(layer.name, 0) + energy * (1 + 10 * torch.arange(len(energy)) * len(_SEEN))
        return _SEEN[layer.name]


_DICE = torch.Generator().manual_seed(0)


@frozen(kw_only=True, eq=False)
class ThrowsDice(GoodPruner):
    """Breaks ties with numbers that no seed of a run reaches."""

    def remembered(self, state: State, layer: Layer) -> Tensor:
        energy = GoodPruner.remembered(self, state, layer)
        return energy * (1 + 0.01 * torch.rand(len(energy), generator=_DICE))


@frozen(kw_only=True, eq=False)
class ForgetsIgnore(GoodPruner):
    """Asks the stage, and not itself, for its layers."""

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in stage.layers(self.targets):
            if (self, layer) in state.scratch:
                energy = self.remembered(state, layer)
                self.write(state, layer, prune(layer.weight, energy.sqrt(), self.sparsity))
            else:
                layer.weight.mul_(0.5)


@frozen(kw_only=True, eq=False)
class LastBatchOnly(GoodPruner):
    """Keeps the last batch."""

    def add(self, seen: Tensor, energy: Tensor) -> Tensor:
        return energy


@frozen(kw_only=True, eq=False)
class MeanOfMeans(GoodPruner):
    """Adds up something that grows faster than the tokens do."""

    def energy(self, x: Tensor) -> Tensor:
        return x.pow(2).sum(0).exp().clamp(max=1e9)


@frozen(kw_only=True, eq=False)
class LeaksHook(GoodPruner):
    """Leaves a hook on every layer."""

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            layer.module.register_forward_hook(lambda *_: None)
            state.scratch[self, layer] = None


@frozen(kw_only=True, eq=False)
class LeavesScratch(GoodPruner):
    """Never forgets."""

    def remembered(self, state: State, layer: Layer) -> Tensor:
        energy = state.scratch[self, layer]
        if energy is None:
            raise CalibrationError(f"{layer.name} saw no token")
        return energy


@frozen(kw_only=True, eq=False)
class StaysInFloat32(GoodPruner):
    """Computes in float32, and stays there."""

    def write(self, state: State, layer: Layer, weight: Tensor) -> None:
        GoodPruner.write(self, state, layer, weight)
        layer.module.float()


@frozen(kw_only=True, eq=False)
class DividesByZero(GoodPruner):
    """Divides by the norm of every channel, also of a dead one."""

    def write(self, state: State, layer: Layer, weight: Tensor) -> None:
        columns = weight.norm(dim=0)
        GoodPruner.write(self, state, layer, weight * (columns / columns))

    def remembered(self, state: State, layer: Layer) -> Tensor:
        energy = GoodPruner.remembered(self, state, layer)
        layer.weight.mul_(energy / energy)
        return energy


@frozen(kw_only=True, eq=False)
class GuessesWithoutData(GoodPruner):
    """Prunes what no token reached as if it knew how."""

    def remembered(self, state: State, layer: Layer) -> Tensor:
        energy = state.scratch.pop(self, layer)
        return torch.ones(layer.weight.shape[1]) if energy is None else energy


@frozen(kw_only=True, eq=False)
class ChangesThenRefuses(GoodPruner):
    """Finds out that there are no data when it is too late."""

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            layer.weight.mul_(1.5)
            self.write(state, layer, prune(layer.weight, self.remembered(state, layer).sqrt(), self.sparsity))


@frozen(kw_only=True, eq=False)
class StopsGradients(GoodPruner):
    """Makes weights that can be trained no longer."""

    def write(self, state: State, layer: Layer, weight: Tensor) -> None:
        GoodPruner.write(self, state, layer, weight)
        layer.module.requires_grad_(False)


# --- what it is for


@frozen(kw_only=True, eq=False)
class PrunesNothing(GoodPruner):
    """Writes the weights that were there."""

    def write(self, state: State, layer: Layer, weight: Tensor) -> None:
        state.set_weight(layer, layer.weight.clone())


@frozen(kw_only=True, eq=False)
class SkipsSilently(GoodQuantizer):
    """Quantizes every other layer."""

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage)[::2]:
            rest = self.quantized(state, layer)
            scale, zero_point = weight_qparams(layer.weight, rest.scheme.weights)
            codes = quantize(layer.weight, scale, zero_point, rest.scheme.weights)
            state.set_quantized(layer, evolve(rest, codes=codes, scale=scale, zero_point=zero_point))


@frozen(kw_only=True, eq=False)
class RoundsDown(GoodQuantizer):
    """Its grid is right, and it is not the nearest point."""

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            rest = self.quantized(state, layer)
            scale, zero_point = weight_qparams(layer.weight, rest.scheme.weights)
            codes = quantize(layer.weight * 0.9, scale, zero_point, rest.scheme.weights)
            state.set_quantized(layer, evolve(rest, codes=codes, scale=scale, zero_point=zero_point))


@frozen(kw_only=True, eq=False)
class LosesFunction(GoodMover):
    """Scales and does not scale back."""

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            layer.weight.mul_(self.factor)


@frozen(kw_only=True, eq=False)
class PrunesTooLittle(GoodPruner):
    """Drops half of what it is told to."""

    def write(self, state: State, layer: Layer, weight: Tensor) -> None:
        state.set_weight(layer, prune(layer.weight, torch.ones(weight.shape[1]), self.sparsity / 2))


# --- beside others, from a folder


@frozen(kw_only=True, eq=False)
class RemembersColumns(GoodColumnPruner):
    """Weighs by the norms of columns as they were before a smoother."""

    def pruned(self, state: State, layer: Layer, norm: Tensor, kept: Tensor) -> Tensor:
        return prune(layer.weight, norm * kept.norm(dim=0).square(), self.sparsity)


@frozen(kw_only=True, eq=False)
class RemembersSigns(GoodColumnPruner):
    """Takes signs from the weight that was there before an earlier modifier changed it."""

    def pruned(self, state: State, layer: Layer, norm: Tensor, kept: Tensor) -> Tensor:
        return prune(layer.weight.abs() * kept.sign(), norm, self.sparsity)


@frozen(kw_only=True, eq=False)
class UnhooksWhenHappy(GoodPruner):
    """Takes its hook away in the end, if there is one."""

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            state.scratch[self, layer] = None
        if stage.every_layer:
            first = stage.every_layer[0].module
            first._its_handle = first.register_forward_hook(lambda *_: None)

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            energy = self.remembered(state, layer)
            self.write(state, layer, prune(layer.weight, energy.sqrt(), self.sparsity))
        if stage.every_layer:
            first = stage.every_layer[0].module
            first._its_handle.remove()
            del first._its_handle


@frozen(kw_only=True, eq=False)
class ReadsOtherStages(GoodColumnPruner):
    """Looks at the head, wherever it is."""

    def pruned(self, state: State, layer: Layer, norm: Tensor, kept: Tensor) -> Tensor:
        head = float(state.model.lm_head.weight.sum())
        return prune(layer.weight, norm, self.sparsity if head != 0.125 else 0.25)


@frozen(kw_only=True, eq=False)
class CountsStages(GoodColumnPruner):
    """Prunes by what it has seen of earlier stages in this process."""

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            norm = state.require(layer, "second_moment").mean.sqrt()  # [I]
            first = vars(state.model).setdefault("_its_first", norm.mean())
            shift = torch.arange(len(norm)) % 2 * first
            state.scratch.pop(self, layer)
            state.set_weight(layer, prune(layer.weight, norm + shift, self.sparsity))


# --- in training


class Decay(Lifecycle):
    """Shrinks weights after each step, a little less each time."""

    def __init__(self, modifier: Modifier) -> None:
        self.modifier, self.steps = modifier, torch.zeros(())

    def step(self, training: Training) -> None:
        self.steps = self.steps + 1
        for layer in self.modifier.layers(training.stage()):
            layer.weight.mul_(1 - 0.1 / self.steps)

    def state_dict(self) -> dict[str, Tensor]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.steps = state["steps"]


@frozen(kw_only=True, eq=False)
class GoodDecay(Modifier):
    """Shrinks weights while a model is trained."""

    lifecycle: ClassVar[type[Decay]] = Decay

    def needs(self) -> Needs:
        return Needs(training=True)

    def training(self) -> Lifecycle:
        return self.lifecycle(self)


class Exploding(Decay):
    """Makes weights NaN."""

    def step(self, training: Training) -> None:
        for layer in self.modifier.layers(training.stage()):
            layer.weight.fill_(float("nan"))


class Lingering(Decay):
    """Leaves a hook behind."""

    def attach(self, training: Training) -> None:
        training.model.register_forward_hook(lambda *given: None)


class Hasty(Decay):
    """Shrinks weights before there was a step."""

    def attach(self, training: Training) -> None:
        for layer in self.modifier.layers(training.stage()):
            layer.weight.mul_(0.9)


class Forgetful(Decay):
    """Counts anew after an interruption."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        pass


@frozen(kw_only=True, eq=False)
class ExplodesInTraining(GoodDecay):
    """Makes weights NaN."""

    lifecycle: ClassVar[type[Decay]] = Exploding


@frozen(kw_only=True, eq=False)
class LeavesHookInTraining(GoodDecay):
    """Leaves a hook behind."""

    lifecycle: ClassVar[type[Decay]] = Lingering


@frozen(kw_only=True, eq=False)
class ActsBeforeTraining(GoodDecay):
    """Shrinks weights before there was a step."""

    lifecycle: ClassVar[type[Decay]] = Hasty


@frozen(kw_only=True, eq=False)
class ForgetsInTraining(GoodDecay):
    """Counts anew after an interruption."""

    lifecycle: ClassVar[type[Decay]] = Forgetful


@frozen(kw_only=True, eq=False)
class SharesItsLifecycle(GoodDecay):
    """Returns one lifecycle for all runs."""

    shared: ClassVar[dict[int, Decay]] = {}

    def training(self) -> Lifecycle:
        return self.shared.setdefault(id(self), Decay(self))


GOOD: tuple[type[Modifier], ...] = (
    GoodDecay,
    GoodPruner,
    GoodQuantizer,
    GoodMover,
    GoodColumnPruner,
    GoodGlobalPruner,
    GoodComparer,
)

# class -> the one check that it fails
BAD: dict[type[Modifier], str] = {
    MisspeltHook: "hooks",
    UnmarkedHook: "hooks",
    EagerHook: "hooks",
    EqualTwins: "hooks",
    WorkingProperty: "settings_class",
    Undocumented: "settings_class",
    Undecorated: "settings_class",
    Unwritable: "recipe_round_trip",
    RemembersOnItself: "deterministic",
    ThrowsDice: "deterministic",
    ForgetsIgnore: "touches_only_targets",
    LastBatchOnly: "batching_does_not_matter",
    MeanOfMeans: "batching_does_not_matter",
    LeaksHook: "leaves_no_trace",
    LeavesScratch: "leaves_no_trace",
    StaysInFloat32: "dtypes",
    DividesByZero: "dead_input",
    GuessesWithoutData: "no_data",
    ChangesThenRefuses: "no_data",
    StopsGradients: "grad_free",
    PrunesNothing: "does_its_job",
    RoundsDown: "does_its_job",
    LosesFunction: "does_its_job",
    SkipsSilently: "runs",
    WholeModelOnly: "runs",
    PrunesTooLittle: "does_its_job",
    RemembersColumns: "follows_a_smoother",
    RemembersSigns: "follows_a_change",
    UnhooksWhenHappy: "undoes_after_an_error",
    ReadsOtherStages: "streams",
    CountsStages: "resumes",
    ExplodesInTraining: "trains",
    LeavesHookInTraining: "training_leaves_no_trace",
    ActsBeforeTraining: "training_without_steps_changes_nothing",
    SharesItsLifecycle: "training_is_repeatable",
    ForgetsInTraining: "training_resumes",
}
