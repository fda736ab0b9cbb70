"""MagnitudePruningModifier: settings and wiring of magnitude pruning."""

import re
from typing import Any, ClassVar

from attrs import Attribute, field, frozen
from torch import Tensor

from coldpress.numerics.mask import check_n_of_m, parse_n_of_m
from coldpress.plugin import PRUNES, BlockTargets, Layer, Lifecycle, SchemeError, Stage, State, hookimpl
from coldpress_magnitude.algorithm import prune_blocks, prune_groups, prune_weights
from coldpress_magnitude.gradual import GradualPruning

_BLOCK = re.compile(r"block_([1-9]\d*),([1-9]\d*)")
_IN_TRAINING = {
    "leave_enabled": "name ConstantPruningModifier as the last modifier of the recipe to keep zeros zero",
    "apply_globally": "layers are pruned one after the other, each to the sparsity that is asked for",
}
SCHEDULERS = ("cubic", "linear", "polynomial", "polynomial_decay", "multi_step")


def _scheduler(value: str | None) -> str:
    return "cubic" if value is None else value


def _arguments(value: dict[str, Any] | None) -> dict[str, Any]:
    return dict(value or {})


@frozen(kw_only=True, eq=False)
class MagnitudePruningModifier(BlockTargets):
    """Drop the smallest weights of each layer, at once or, in training, little by little.

    In one shot `coldpress.oneshot` goes to the final sparsity, and the schedule has no effect.
    In `coldpress.train` masks are made anew from `start` to `end`, each for a higher sparsity than the last one; they
    hold until training ends.

    Attributes:
        sparsity: share of weights to drop, at least 0 and below 1; not needed with `n:m`.
        final_sparsity: the same, as llm-compressor calls it; give one of the two.
        mask_structure: `unstructured`; `n:m` keeps n of every m weights side by side in a row; `channel` drops whole
            columns, `filter` whole rows, `block_r,c` blocks of r rows and c columns.
        init_sparsity: of the first mask, in training.
        update_scheduler: how the sparsity rises: `cubic`, `linear`, `polynomial`, `polynomial_decay`, `multi_step`.
        scheduler_args: `exponent` of the polynomials; `values`, of multi_step, sparsities each of which holds for an
            equal part of the schedule.
        start: epoch of the first mask, with its fraction.
        end: epoch of the last one; None is the end of training.
        update: epochs between masks; None makes twenty of them.
        leave_enabled: in training masks hold to its end in any case; refused in one shot, unless false.
        apply_globally: one threshold for all layers instead of one for each; in training only.
    """

    traits: ClassVar[frozenset[str]] = frozenset({PRUNES})

    sparsity: float | None = field(default=None)
    final_sparsity: float | None = field(default=None)
    mask_structure: str = field(default="unstructured")
    init_sparsity: float = field(default=0.0)
    update_scheduler: str = field(default="cubic", converter=_scheduler)
    scheduler_args: dict[str, Any] = field(factory=dict, converter=_arguments)
    start: float = field(default=0.0)
    end: float | None = field(default=None)
    update: float | None = field(default=None)
    leave_enabled: bool = field(default=False)
    apply_globally: bool = False

    @sparsity.validator
    @final_sparsity.validator
    @init_sparsity.validator
    def _check_sparsity(self, attribute: "Attribute[float | None]", value: float | None) -> None:
        if value is not None and not 0 <= value < 1:
            raise SchemeError(f"{attribute.name} must be at least 0 and below 1, got {value!r}")

    @mask_structure.validator
    def _check_structure(self, attribute: object, value: str) -> None:
        if self.sparsity is not None and self.final_sparsity is not None:
            raise SchemeError("give either sparsity or final_sparsity, which mean the same")
        if value in ("channel", "filter") or _BLOCK.fullmatch(value):
            structure = None
        elif ":" in value or value == "unstructured":
            structure = parse_n_of_m(value, self.share())
        else:
            raise SchemeError(
                f"mask_structure is {value!r}; there are unstructured, n:m (such as 2:4), channel, filter, block_r,c"
            )
        if structure is None and self.share() is None:
            raise SchemeError("sparsity is missing: say what share of the weights to drop, or a mask_structure n:m")

    @scheduler_args.validator
    def _check_schedule(self, attribute: object, value: dict[str, Any]) -> None:
        if self.update_scheduler not in SCHEDULERS:
            raise SchemeError(
                f"update_scheduler is {self.update_scheduler!r}; there are {', '.join(SCHEDULERS)} (an expression, "
                "calc(...), would be code that a recipe runs)"
            )
        known = {"multi_step": {"values"}, "polynomial": {"exponent"}, "polynomial_decay": {"exponent"}}
        unknown = value.keys() - known.get(self.update_scheduler, set())
        if unknown:
            raise SchemeError(f"scheduler_args: {self.update_scheduler} has no {sorted(unknown)[0]!r}")
        steps = value.get("values", [])
        rising = all(isinstance(one, int | float) and 0 <= one < 1 for one in steps) and steps == sorted(steps)
        if self.update_scheduler == "multi_step" and not (steps and rising):
            raise SchemeError("scheduler_args: multi_step needs values, sparsities in [0, 1) that rise")
        exponent = value.get("exponent", 3.0)
        if not isinstance(exponent, int | float) or exponent <= 0:
            raise SchemeError(f"scheduler_args: exponent must be above 0, got {exponent!r}")

    @leave_enabled.validator
    def _check_rise(self, attribute: object, value: object) -> None:
        steps, goal = self.scheduler_args.get("values", []), self.share()
        name, first = ("values", max(steps)) if steps else ("init_sparsity", self.init_sparsity)
        if goal is not None and first > goal:
            raise SchemeError(
                f"{name}: {first:g} is above the final sparsity, {goal:g}, and what was pruned once stays so"
            )

    @start.validator
    @end.validator
    @update.validator
    def _check_times(self, attribute: "Attribute[float | None]", value: float | None) -> None:
        if value is not None and value < 0:
            raise SchemeError(f"{attribute.name} counts epochs, and must not be negative, got {value!r}")
        if attribute.name == "update" and value == 0:
            raise SchemeError("update must be above 0, epochs between two masks; leave it out for twenty masks")
        if attribute.name == "end" and value is not None and value < self.start:
            raise SchemeError(f"end={value!r} comes before start={self.start!r}")

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Look whether the structure fits all layers of the model, before the first one is pruned.

        Raises:
            SchemeError: names the layer that it does not fit, or a setting that acts in training only.
        """
        for name, reason in _IN_TRAINING.items():
            if getattr(self, name):
                raise SchemeError(f"{name} has no meaning in one shot: {reason}; leave it out, or use coldpress.train")
        self.check_structure(Stage.whole(state.model))

    def training(self) -> Lifecycle:
        """Prune little by little."""
        return GradualPruning(self)

    def check_structure(self, whole: Stage) -> None:
        """Refuse layers that the structure does not divide.

        Raises:
            SchemeError: names the layer.
        """
        for layer in self.layers(whole):
            rows, columns = layer.weight.shape
            block = self._block(layer)
            if block is not None and (rows % block[0] or columns % block[1]):
                raise SchemeError(
                    f"{layer.name}: {rows} x {columns} weights do not split into blocks of {block[0]} x {block[1]}; "
                    "ignore the layer"
                )
            if block is None and ":" in self.mask_structure:
                check_n_of_m(layer.name, columns, (parse_n_of_m(self.mask_structure) or (0, 1))[1])

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Prune the weights of the stage."""
        for layer in self.layers(stage):
            with state.timed(layer):
                state.set_weight(layer, self.pruned(layer, self.share()))

    def pruned(self, layer: Layer, share: float | None) -> Tensor:
        """The weight of a layer, [O, I], without its smallest ones.

        Args:
            layer: whose weight is read.
            share: of the weights that goes; unused where the structure is n:m.
        """
        structure, block = None, self._block(layer)
        if block is None:
            structure = parse_n_of_m(self.mask_structure)
        if structure is not None:
            return prune_groups(layer.weight, kept=structure[0], size=structure[1])
        assert share is not None
        if block is not None:
            return prune_blocks(layer.weight, block=block, sparsity=share)
        return prune_weights(layer.weight, sparsity=share)

    def _block(self, layer: Layer) -> tuple[int, int] | None:
        """Rows and columns of what is dropped as a whole; None for single weights."""
        rows, columns = layer.weight.shape
        if self.mask_structure in ("channel", "filter"):
            return (rows, 1) if self.mask_structure == "channel" else (1, columns)
        match = _BLOCK.fullmatch(self.mask_structure)
        return (int(match[1]), int(match[2])) if match else None

    def share(self) -> float | None:
        """The sparsity that is asked for; None where the structure says it."""
        return self.sparsity if self.sparsity is not None else self.final_sparsity
