"""AutoBitsModifier: settings and wiring of the choice of bits."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from attrs import evolve, field, frozen
from attrs.validators import ge, gt, in_, optional
from torch import Tensor

from coldpress.numerics import calculate_global_scale, dequantize, quantize
from coldpress.plugin import (
    CalibrationError,
    Decision,
    Gamma,
    Labels,
    Layer,
    Modifier,
    Needs,
    Note,
    Quantizer,
    Recipe,
    Scheme,
    SchemeError,
    Stage,
    State,
    hookimpl,
    preset,
    weight_qparams,
    write_recipe,
)
from coldpress.schemes import check_fit, check_supported, describe
from coldpress_autobits.algorithm import (
    cost,
    ends_first,
    fed_back_cost,
    input_cost,
    pivots_by_activity,
    solve,
    uniform,
)
from coldpress_autobits.bytes import in_bytes
from coldpress_autobits.noise import InputNoise
from coldpress_autobits.plans import Choice, Plan, Unit, divergence_of, picture, together

log = logging.getLogger(__name__)

Candidate = str | int | dict[str, Any]


@frozen(kw_only=True, eq=False)
class AutoBitsModifier(Modifier):
    """Give each layer, of those that a quantizer after it quantizes, one of some schemes, within a size.

    Layers that engines fuse, and the experts of a block, get one scheme.
    What a layer's error costs is the Fisher information of its outputs times the error on its inputs; one measuring
    pass, after one pass forwards and backwards, tells it for all candidates.

    Attributes:
        target_bits: bits a weight, scales and zero points included, on average over the layers that are quantized.
        target_size: of the whole checkpoint's weights, in bytes or as "3GB"; instead of `target_bits`.
        candidates: schemes to choose from: presets by name, whole numbers for symmetric integers of so many bits, or
            tables with `weights`, and `input_activations` where inputs are quantized.
        group_size: columns that share a scale, of presets and whole numbers; None for the preset's, 128 for numbers.
        labels: of the loss: "sampled" from the model, or of the "data".
        error_feedback: errors are those of a quantizer that makes up for them in later columns, as GPTQ does.
        rounds: it rounds to nearest by itself, so that no quantizer need follow.
        num_check_tokens: plans are compared by their KL on so many of the last calibration tokens, rounded to nearest;
            0 takes the first plan.  Of a model that is streamed none are compared.
    """

    notes: ClassVar[tuple[Note, ...]] = (Note("bits", "", "the scheme that was chosen for the layer"),)

    target_bits: float | None = field(default=None, validator=optional(gt(0)))
    target_size: int | str | None = field(default=None)
    candidates: list[Candidate] = field(factory=lambda: [3, 4, 8], converter=list)
    group_size: int | None = None
    labels: Labels = field(default="sampled", validator=in_(("sampled", "data")))
    error_feedback: bool = False
    rounds: bool = False
    num_check_tokens: int = field(default=4096, validator=ge(0))

    @target_size.validator
    def _check_target(self, attribute: object, value: object) -> None:
        if (value is None) == (self.target_bits is None):
            raise SchemeError("give either target_bits (such as 4.5) or target_size (such as '3GB'), one of the two")
        if value is not None:
            in_bytes(value)

    @candidates.validator
    def _check_candidates(self, attribute: object, value: Sequence[Candidate]) -> None:
        if len(value) < 2:
            raise SchemeError("candidates must be two schemes or more, such as [W4A16, W8A16] or [3, 4, 8]")

    @num_check_tokens.validator
    def _check_schemes(self, attribute: object, value: object) -> None:
        for scheme in self.schemes():
            if scheme.weights is None:
                raise SchemeError(f"a candidate is {describe(scheme)}: each must quantize weights")
            check_supported(scheme)

    def schemes(self) -> list[Scheme]:
        """The candidates, in their order.

        Raises:
            SchemeError: one is not understood.
        """
        return [_scheme(candidate, self.group_size) for candidate in self.candidates]

    def expand(self) -> Sequence[Modifier]:
        """Itself, and rounding to nearest where that is its own business."""
        if not self.rounds:
            return (self,)
        quantizer = QuantizationModifier(
            config_groups={"all": self.schemes()[0]}, targets=self.targets, ignore=self.ignore
        )
        return evolve(self, rounds=False), quantizer

    def needs(self) -> Needs:
        """Data, a look at the whole model, and mean squares of output gradients."""
        return Needs(
            data=True, propagated_error=False, measuring_pass=True, loss_gradients=(Gamma(labels=self.labels),)
        )

    def check(self, state: State) -> None:
        """Refuse a target that no choice meets, from shapes alone.

        Raises:
            SchemeError: nothing in the recipe quantizes one of its layers, no candidate fits a unit, or the smallest
                choice is larger than the target.
        """
        layers = self._planned(state, Stage.whole(state.model))
        if not layers:
            raise SchemeError(
                "AutoBitsModifier chooses schemes, and nothing in the recipe quantizes its layers: put a "
                "QuantizationModifier or a GPTQModifier after it, or set rounds: true"
            )
        shapes = {layer.name: self._measured(state, layer, None) for layer in layers}
        self._budget(state, shapes, self._units(state, shapes))

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Before the decision: request Gram matrices, and errors of inputs where candidates round these."""
        if state.decision(self) is not None:
            return
        for layer in self._planned(state, stage):
            state.request(layer, "gram")
            for noise in self._noises():
                state.request(layer, noise)

    def measure(self, state: State, stage: Stage) -> dict[str, Any]:
        """What each candidate costs and takes, of each layer of the stage; None where it does not fit."""
        found = {}
        for layer in self._planned(state, stage):
            gram, gamma = state.statistic(layer, "gram"), state.statistic(layer, Gamma(labels=self.labels))
            known = None if gram is None or gamma is None else self._known(gram, gamma.mean)
            found[layer.name] = self._measured(state, layer, known)
        return found

    def decide(self, state: State, measured: Sequence[Mapping[str, Any]]) -> Decision:
        """Solve, compare plans, take the best.

        Raises:
            SchemeError: the smallest choice is larger than the target, or no candidate fits a unit.
        """
        layers = {name: found for stage in measured for name, found in stage.items()}
        most = max((found["tokens"] for found in layers.values()), default=0)
        layers = {name: _of_all_tokens(found, most) for name, found in layers.items()}
        units = self._units(state, layers)
        budget, fixed = self._budget(state, layers, units)
        plans = self._plans(state, units, budget)
        if len(plans) > 1 and self.num_check_tokens:
            plans = self._compared(state, plans)
        best = min(plans, key=lambda plan: plan.kl if plan.kl is not None else 0.0)
        chosen = {name: choice.option for choice in best.choices for name in choice.unit.layers}
        schemes = self.schemes()
        weights = sum(choice.unit.weights for choice in best.choices)
        value = {
            "layers": chosen,
            "plan": best.name,
            "bits": round(8 * best.nbytes / weights, 4),
            "nbytes": best.nbytes,
            "whole_nbytes": best.nbytes + fixed,
            "plans": [plan.to_dict() for plan in plans],
            "unseen": [name for name, found in layers.items() if not found["tokens"]],
            "costs": {choice.unit.name: list(choice.unit.costs) for choice in best.choices},
        }
        log.info("%s: %.3f bits a weight, plan %r", type(self).__name__, value["bits"], best.name)
        decided = {name: _decided(state, name, schemes[option]) for name, option in chosen.items()}
        return Decision(value=value, schemes=decided)

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Note in the report what was chosen."""
        value = state.decision(self)
        for layer in self._planned(state, stage) if value is not None else ():
            scheme = state.scheme_of(layer)
            assert scheme is not None
            why = " (no token reached it, so its cost is not known)" if layer.name in value["unseen"] else ""
            state.report[layer.name].notes["bits"] = describe(scheme) + why

    @hookimpl
    def save(self, state: State, folder: Path) -> None:
        """Add a picture of the choice, and a recipe that replays it without measuring."""
        value = state.decision(self)
        if value is None:
            return
        names = [describe(scheme) for scheme in self.schemes()]
        (folder / "autobits.md").write_text(picture(value, names), encoding="utf-8")
        (folder / "autobits_recipe.yaml").write_text(self.replay(state), encoding="utf-8")

    def replay(self, state: State) -> str:
        """A recipe of the quantizers alone, with the schemes that were chosen and the names of their layers."""
        quantizers: dict[int, Quantizer] = {}
        groups: dict[int, dict[Scheme, list[str]]] = {}
        for name, planned in state.plan.items():
            quantizer = planned.quantizer
            if not isinstance(quantizer, Quantizer):
                raise CalibrationError(f"{type(quantizer).__name__} is no Quantizer: its recipe cannot be written")
            quantizers[id(quantizer)] = quantizer
            groups.setdefault(id(quantizer), {}).setdefault(evolve(planned.scheme, targets=()), []).append(name)
        steps = []
        for key, quantizer in quantizers.items():
            tables = {
                f"group_{number}": evolve(scheme, targets=tuple(names))
                for number, (scheme, names) in enumerate(groups[key].items())
            }
            steps.append(evolve(quantizer, scheme=None, group_size=None, config_groups=tables))
        return write_recipe(Recipe(steps))

    def _planned(self, state: State, stage: Stage) -> list[Layer]:
        found = [layer for layer in self.layers(stage) if "Linear" in layer.classes]
        return [layer for layer in found if state.scheme_of(layer) is not None]

    def _noises(self) -> list[InputNoise]:
        args = dict.fromkeys(one.input_activations for one in self.schemes() if one.input_activations is not None)
        return [InputNoise(args=one) for one in args]

    def _measured(self, state: State, layer: Layer, known: "_Known | None") -> dict[str, Any]:
        """Costs and bytes of all candidates; None where one does not fit, and no cost where nothing is known."""
        weight, costs, sizes = layer.weight, list[float | None](), list[int | None]()
        for scheme in self.schemes():
            fits = _fits(scheme, weight)
            sizes.append(state.stored_nbytes(layer, scheme) if fits else None)
            costs.append((0.0 if known is None else self._cost(state, layer, scheme, known)) if fits else None)
        tokens = 0 if known is None else known.tokens
        return {"costs": costs, "sizes": sizes, "weights": weight.numel(), "tokens": tokens}

    def _known(self, gram: Any, gamma: Tensor) -> "_Known":
        mean = gram.total / gram.count
        return _Known(mean, pivots_by_activity(mean) if self.error_feedback else None, gamma, gram.count)

    def _cost(self, state: State, layer: Layer, scheme: Scheme, known: "_Known") -> float:
        weight = layer.weight
        error = weight - rounded(weight, scheme, known.gram.diagonal())
        found = (
            cost(error, known.gram, known.gamma)
            if known.pivots is None
            else fed_back_cost(error, known.pivots, known.gamma)
        )
        if scheme.input_activations is not None:
            noise = state.require(layer, InputNoise(args=scheme.input_activations))
            found += input_cost(weight, noise.mean, known.gamma)
        return found

    def _units(self, state: State, layers: Mapping[str, Mapping[str, Any]]) -> list[Unit]:
        """Layers that must have one scheme, together."""
        units = [Unit.of(names, [layers[name] for name in names]) for names in together(state, self, layers)]
        lost = [unit.name for unit in units if not unit.options]
        if lost:
            raise SchemeError(f"{lost[0]}: no candidate fits all of its layers; name one with another group_size")
        return units

    def _budget(self, state: State, layers: Mapping[str, Mapping[str, Any]], units: Sequence[Unit]) -> tuple[int, int]:
        """Bytes for the layers, and of all other weights of the checkpoint."""
        own, named = {f"{name}.weight" for name in state.plan}, state.model.named_parameters(remove_duplicate=False)
        dense = {id(parameter): parameter.nbytes for name, parameter in named if name not in own}
        others = [one for one in Stage.whole(state.model).every_layer if one.name in state.plan.keys() - layers.keys()]
        fixed = sum(dense.values()) + sum(state.stored_nbytes(one, state.plan[one.name].scheme) for one in others)
        if self.target_bits is not None:
            budget = int(self.target_bits * sum(found["weights"] for found in layers.values()) / 8)
        else:
            budget = in_bytes(self.target_size) - fixed
        least = sum(min(unit.sizes) for unit in units)
        if least > budget:
            weights = sum(unit.weights for unit in units)
            asked = f"target_bits {self.target_bits}" if self.target_bits else f"target_size {self.target_size}"
            raise SchemeError(
                f"{asked} is less than the smallest choice of these candidates: {8 * least / weights:.3f} bits a "
                f"weight, {least + fixed:,} bytes with all other weights; raise it, or add a candidate with fewer bits"
            )
        return budget, fixed

    def _plans(self, state: State, units: Sequence[Unit], budget: int) -> list[Plan]:
        """The plan that (1) is least for, and some that are right where it is wrong."""
        sizes = [unit.sizes for unit in units]
        found = {}
        for name, power in (("fisher", 1.0), ("fisher, large costs flattened", 0.75)):
            choice = solve([[one**power for one in unit.costs] for unit in units], sizes, budget)
            assert choice is not None
            found[name] = choice
        ends = sorted(range(len(units)), key=lambda i: (min(i, len(units) - 1 - i), i))
        for name, order in (("both ends first", ends), ("uniform", [])):
            choice = uniform(sizes, budget) if name == "uniform" else ends_first(sizes, order, budget)
            if choice is not None:
                found[name] = choice
        plans: list[Plan] = []
        for name, choice in found.items():
            plan = Plan(name, [Choice(unit, i) for unit, i in zip(units, choice, strict=True)])
            if all(plan.options != other.options for other in plans):
                plans.append(plan)
        return plans

    def _compared(self, state: State, plans: Sequence[Plan]) -> list[Plan]:
        """The plans with their KL on calibration tokens, rounded to nearest; as they are where streamed."""
        if any(parameter.is_meta for parameter in state.model.parameters()):
            log.info("the model is streamed, so plans are not compared: %r is taken", plans[0].name)
            return list(plans[:1])
        layers = {layer.name: layer for layer in self.layers(Stage.whole(state.model))}
        return [evolve(plan, kl=self._divergence(state, layers, plan)) for plan in plans]

    def _divergence(self, state: State, layers: Mapping[str, Layer], plan: Plan) -> float:
        """The KL from the original of a plan."""
        schemes = self.schemes()
        chosen = {layers[name]: schemes[choice.option] for choice in plan.choices for name in choice.unit.layers}
        weights = {layer: rounded(layer.weight, one, None).to(layer.weight.dtype) for layer, one in chosen.items()}
        inputs = {layer: args for layer, one in chosen.items() if (args := one.input_activations) is not None}
        noises = {layer: InputNoise(args=args) for layer, args in inputs.items()}
        return divergence_of(state, weights, noises, self.num_check_tokens)


@frozen(kw_only=True, eq=False)
class QuantizationModifier(Quantizer):
    """Rounding to nearest, under the name that recipes have for it."""


@frozen(eq=False)
class _Known:
    """What is known of a layer: the mean of x x^T, its pivots where errors are fed back, gamma, and its tokens."""

    gram: Tensor
    pivots: Tensor | None
    gamma: Tensor
    tokens: int


def _decided(state: State, name: str, scheme: Scheme) -> Scheme:
    """A candidate with the targets, and the observers, that the quantizer of a layer has."""
    planned = state.plan[name]
    if isinstance(planned.quantizer, Quantizer):
        scheme = planned.quantizer.observed(scheme)
    return evolve(scheme, targets=planned.scheme.targets)


def _of_all_tokens(found: Mapping[str, Any], most: int) -> dict[str, Any]:
    """What a layer that some tokens reach, as an expert, costs a token of all."""
    share = found["tokens"] / max(most, 1)
    return {**found, "costs": [None if one is None else one * share for one in found["costs"]]}


def _fits(scheme: Scheme, weight: Tensor) -> bool:
    try:
        check_fit(scheme, (weight.shape[0], weight.shape[1]))
    except SchemeError:
        return False
    return True


def rounded(weight: Tensor, scheme: Scheme, importance: Tensor | None) -> Tensor:
    """A weight, [O, I], rounded to nearest by the observer of a scheme."""
    args = scheme.weights
    assert args is not None
    factor = calculate_global_scale(weight.abs().amax(), args) if args.strategy == "tensor_group" else None
    scale, point = weight_qparams(weight, args, global_scale=factor, importance=importance)
    codes = quantize(weight, scale, point, args, global_scale=factor)
    return dequantize(codes, scale, point, args, global_scale=factor)


def _scheme(candidate: Candidate, group_size: int | None) -> Scheme:
    if isinstance(candidate, str):
        return preset(candidate) if group_size is None else _grouped(candidate, group_size)
    if isinstance(candidate, bool) or not isinstance(candidate, int | dict):
        raise SchemeError(f"a candidate is {candidate!r}: name a preset, a number of bits, or a table with weights")
    if isinstance(candidate, int):
        weights = {"num_bits": candidate, "type": "int", "symmetric": True, "group_size": group_size or 128}
        return Scheme.from_dict({"targets": ["Linear"], "weights": weights})
    return Scheme.from_dict({"targets": ["Linear"], **candidate})


def _grouped(name: str, group_size: int) -> Scheme:
    """A preset with another group size, where it has groups of its own choice."""
    found = preset(name)
    free = found.weights is not None and found.weights.strategy == "group" and found.weights.scale_dtype is None
    return preset(name, group_size=group_size) if free else found
