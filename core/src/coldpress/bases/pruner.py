"""Pruner: the settings that modifiers share which drop weights by what calibration data say of their inputs."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from attrs import field, frozen
from attrs.validators import gt, in_, optional
from torch import Tensor, nn

from coldpress.bases.block_targets import BlockTargets
from coldpress.bases.guidance import GUIDANCE, guiding
from coldpress.dataflow.partition import block_names
from coldpress.errors import SchemeError, must_implement
from coldpress.hookspecs import hookimpl
from coldpress.layer_report import Note
from coldpress.modifier import PRUNES, Decision, Needs
from coldpress.numerics.mask import check_n_of_m, parse_n_of_m
from coldpress.stage import Layer, Stage
from coldpress.state import State
from coldpress.statistic import Labels

log = logging.getLogger(__name__)


@frozen(kw_only=True, eq=False)
class Pruner(BlockTargets):
    """Base of modifiers that prune with the help of calibration data.

    A subclass implements `finalize`, where it reads what it requested and zeroes weights, and `input_norms`.

    Attributes:
        sparsity: share of weights to drop, at least 0 and below 1; a list has one for each block of the model, or one
            for each module that targets match, in the order of the model; not needed with `n:m`.
        sparsity_profile: `owl` gives blocks whose inputs have more outliers a lower sparsity (arXiv 2310.05175).
        owl_m: how many times the mean an outlier is.
        owl_lmbda: how far the sparsities of two blocks may be apart, halved.
        mask_structure: `n:m` keeps n of every m weights side by side in a row; `0:0` for unstructured.
        guidance: tokens count by what an error in their outputs costs the model's loss, by labels "sampled" from the
            model or of the "data"; it takes a pass forwards and backwards through the model first.  None counts all
            tokens alike.
        sequential_update: understood and without effect: whether later blocks see the outputs of pruned ones is up to
            the pipeline's `propagate_error`.
    """

    traits: ClassVar[frozenset[str]] = frozenset({PRUNES})
    notes: ClassVar[tuple[Note, ...]] = (
        Note("sparsity_asked", "of the weights", "share that was to be zero, where layers have shares of their own"),
    )

    sparsity: float | list[float] | None = field(default=None)
    sparsity_profile: Literal["owl"] | None = field(default=None)
    owl_m: float | None = field(default=None, validator=optional(gt(0)))
    owl_lmbda: float | None = field(default=None, validator=optional(gt(0)))
    mask_structure: str = field(default="0:0")
    guidance: Labels | None = field(default=None, validator=in_(GUIDANCE))
    sequential_update: bool = False

    @sparsity.validator
    def _check_sparsity(self, attribute: object, value: Any) -> None:
        for one in value if isinstance(value, list) else [value]:
            if one is not None and not 0 <= one < 1:
                raise SchemeError(f"sparsity must be at least 0 and below 1, got {one!r}")

    @sparsity_profile.validator
    def _check_profile(self, attribute: object, value: object) -> None:
        if value is None:
            if self.owl_m is not None or self.owl_lmbda is not None:
                raise SchemeError("owl_m and owl_lmbda belong to sparsity_profile: owl, which is not set")
            return
        if self.owl_m is None or self.owl_lmbda is None:
            raise SchemeError("sparsity_profile: owl needs owl_m and owl_lmbda; the paper has 5 and 0.08")
        reach = 2 * self.owl_lmbda
        if not isinstance(self.sparsity, float | int) or not reach <= self.sparsity < 1 - reach:
            raise SchemeError(
                f"sparsity_profile: owl moves the sparsity of a block by up to 2 * owl_lmbda = {reach:g}, so sparsity "
                f"must be one number at least that far from 0 and 1; got {self.sparsity!r}"
            )

    @mask_structure.validator
    def _check_structure(self, attribute: object, value: str) -> None:
        structure = parse_n_of_m(value, self.sparsity)
        if structure is None and self.sparsity is None:
            raise SchemeError("sparsity is missing: say what share of the weights to drop, or a mask_structure n:m")
        if structure is not None and self.sparsity_profile is not None:
            raise SchemeError(f"mask_structure {value} has one sparsity, and sparsity_profile: owl many: choose one")

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Look, before anything is computed, whether all layers of the model can be pruned as asked.

        Raises:
            SchemeError: groups do not divide the columns of a layer, or the list of sparsities does not fit the model.
        """
        layers = self.layers(Stage.whole(state.model))
        structure = self.structure()
        if structure is not None:
            for layer in layers:
                check_n_of_m(layer.name, layer.weight.shape[1], structure[1])
        if isinstance(self.sparsity, list) or self.sparsity_profile is not None:
            self._groups(state)

    def needs(self) -> Needs:
        """Data, for `owl` a look at all blocks before the first is pruned, and what guides."""
        return Needs(data=True, measuring_pass=self.sparsity_profile is not None, loss_gradients=guiding(self.guidance))

    def input_norms(self, state: State, layer: Layer) -> Tensor | None:
        """In `finalize` or `measure`: the norms of the inputs of a layer, [I]; None when no token reached it."""
        raise must_implement(self, "input_norms(state, layer)")

    def measure(self, state: State, stage: Stage) -> dict[str, tuple[float, int]]:
        """The share of outliers in each block of the stage, and how many weights it has."""
        inside = {layer.name for layer in self.layers(stage)}
        found = {}
        for name, block in self._groups(state).items():
            layers = [layer for layer in block if layer.name in inside]
            if layers:
                norms = [(layer, self.input_norms(state, layer)) for layer in layers]
                assert self.owl_m is not None
                found[name] = outlier_share(norms, self.owl_m), sum(layer.weight.numel() for layer in layers)
        return found

    def decide(self, state: State, measured: Sequence[Mapping[str, Sequence[float]]]) -> Decision:
        """The sparsities of the paper, one for each block, rounded to 0.0001; their mean is `sparsity`."""
        assert isinstance(self.sparsity, float | int)
        assert self.owl_lmbda is not None
        blocks = {name: pair for stage in measured for name, pair in stage.items()}
        shares, sizes = [share for share, _ in blocks.values()], [int(size) for _, size in blocks.values()]
        chosen = owl_sparsities(shares, sizes, sparsity=self.sparsity, lmbda=self.owl_lmbda)
        log.info("owl chose sparsity: %s", [round(one, 4) for one in chosen])
        return Decision(value={name: round(one, 4) for name, one in zip(blocks, chosen, strict=True)})

    def structure(self) -> tuple[int, int] | None:
        """(n, m) where n of every m weights stay; None for unstructured."""
        return parse_n_of_m(self.mask_structure)

    def sparsities(self, state: State, stage: Stage) -> dict[str, float]:
        """In `finalize`: the share of weights that each layer of the stage loses, by name."""
        layers = self.layers(stage)
        structure = self.structure()
        if structure is not None:
            return dict.fromkeys((layer.name for layer in layers), 1 - structure[0] / structure[1])
        if self.sparsity_profile is None and not isinstance(self.sparsity, list):
            assert self.sparsity is not None
            return dict.fromkeys((layer.name for layer in layers), self.sparsity)
        groups = self._groups(state)
        listed = self.sparsity if isinstance(self.sparsity, list) else [state.decision(self)[name] for name in groups]
        chosen = {one.name: share for group, share in zip(groups.values(), listed, strict=True) for one in group}
        for layer in layers:
            state.report[layer.name].notes["sparsity_asked"] = chosen[layer.name]
        return chosen

    def _groups(self, state: State) -> dict[str, list[Layer]]:
        """The layers that have one sparsity, by the name of their block, or of the module that a target matches.

        Raises:
            SchemeError: the list of sparsities fits neither, or a layer lies in no block.
        """
        whole = Stage.whole(state.model)
        targeted = self.by_target(whole)
        if isinstance(self.sparsity, list) and len(self.sparsity) == len(targeted):
            return targeted
        blocks = _by_block(state.model, self.layers(whole))
        if isinstance(self.sparsity, list) and len(self.sparsity) != len(blocks):
            raise SchemeError(
                f"sparsity has {len(self.sparsity)} numbers; {len(blocks)} blocks of the model have layers that are "
                f"pruned, and targets match {len(targeted)} modules: give one for each of either"
            )
        return blocks


def owl_sparsities(shares: Sequence[float], sizes: Sequence[int], *, sparsity: float, lmbda: float) -> list[float]:
    """Outlier Weighed Layerwise sparsity: the more outliers a block has, the fewer of its weights go.

    Args:
        shares: of outliers, one for each block.
        sizes: weights of each block.
        sparsity: of all blocks together.
        lmbda: half the difference between the highest and the lowest sparsity.

    Returns:
        A sparsity for each block.
    """
    low, high = min(shares), max(shares)
    if high == low:
        return [sparsity] * len(shares)
    raised = [(share - low) / (high - low) * 2 * lmbda for share in shares]
    mean = sum(one * size for one, size in zip(raised, sizes, strict=True)) / sum(sizes)
    return [sparsity - one + mean for one in raised]


def outlier_share(block: Iterable[tuple[Layer, Tensor | None]], times: float) -> float:
    """The share of |w| * norm in a block that is more than `times` its mean.

    Args:
        block: its layers, and the norms of their inputs, [I]; None of a layer that no token reached.
        times: how many times the mean an outlier is.
    """
    known = [(layer, norm) for layer, norm in block if norm is not None]
    count = sum(layer.weight.numel() for layer, _ in known)
    if not count:
        return 0.0
    sums = [torch.mv(layer.weight.abs().float(), norm.float()).double().sum() for layer, norm in known]
    edge = float(sum(float(one) for one in sums)) / count * times
    above = [(layer.weight.float().abs() * norm > edge).sum().item() for layer, norm in known]
    return sum(above) / count


def _by_block(model: nn.Module, layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """The layers of each block that has some, in model order.

    Raises:
        SchemeError: a layer is in no block.
    """
    blocks: dict[str, list[Layer]] = {name: [] for name in block_names(model)}
    for layer in layers:
        home = next((name for name in blocks if layer.name.startswith(f"{name}.")), None)
        if home is None:
            raise SchemeError(
                f"{layer.name} is in none of the model's blocks, which a list of sparsities and owl go by; ignore it"
            )
        blocks[home].append(layer)
    return {name: inside for name, inside in blocks.items() if inside}
