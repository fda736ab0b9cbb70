"""MagnitudePruningModifier: settings and wiring of magnitude pruning."""

import re
from typing import Any, ClassVar

from attrs import Attribute, field, frozen
from torch import Tensor

from coldpress.numerics.mask import check_n_of_m, parse_n_of_m
from coldpress.plugin import PRUNES, BlockTargets, Layer, SchemeError, Stage, State, hookimpl
from coldpress_magnitude.algorithm import prune_blocks, prune_groups, prune_weights

_BLOCK = re.compile(r"block_([1-9]\d*),([1-9]\d*)")
_NOT_HERE = {
    "leave_enabled": "name ConstantPruningModifier as the last modifier of the recipe to keep zeros zero",
    "apply_globally": "layers are pruned one after the other, each to the sparsity that is asked for",
}


def _refuse(instance: object, attribute: "Attribute[Any]", value: object) -> None:
    if value:
        raise SchemeError(f"{attribute.name} has no meaning here: {_NOT_HERE[attribute.name]}; leave it out")


@frozen(kw_only=True, eq=False)
class MagnitudePruningModifier(BlockTargets):
    """Drop the smallest weights of each layer; no data are read.

    The last five settings belong to pruning while training: here one step goes to the final sparsity, so the schedule
    that leads there has no effect, and what would go on after it is refused with a reason.

    Attributes:
        sparsity: share of weights to drop, at least 0 and below 1; not needed with `n:m`.
        final_sparsity: the same, as llm-compressor calls it; give one of the two.
        mask_structure: `unstructured`; `n:m` keeps n of every m weights side by side in a row; `channel` drops whole
            columns, `filter` whole rows, `block_r,c` blocks of r rows and c columns.
        init_sparsity: understood and without effect.
        update_scheduler: understood and without effect.
        scheduler_args: understood and without effect.
        leave_enabled: refused, unless false.
        apply_globally: refused, unless false.
    """

    traits: ClassVar[frozenset[str]] = frozenset({PRUNES})

    sparsity: float | None = field(default=None)
    final_sparsity: float | None = field(default=None)
    mask_structure: str = field(default="unstructured")
    init_sparsity: float | None = None
    update_scheduler: str | None = None
    scheduler_args: dict[str, Any] | None = None
    leave_enabled: bool = field(default=False, validator=_refuse)
    apply_globally: bool = field(default=False, validator=_refuse)

    @sparsity.validator
    @final_sparsity.validator
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
            structure = parse_n_of_m(value, self._share())
        else:
            raise SchemeError(
                f"mask_structure is {value!r}; there are unstructured, n:m (such as 2:4), channel, filter, block_r,c"
            )
        if structure is None and self._share() is None:
            raise SchemeError("sparsity is missing: say what share of the weights to drop, or a mask_structure n:m")

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Look whether the structure fits all layers of the model, before the first one is pruned.

        Raises:
            SchemeError: names the layer that it does not fit.
        """
        for layer in self.layers(Stage.whole(state.model)):
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
                state.set_weight(layer, self._pruned(layer))

    def _pruned(self, layer: Layer) -> Tensor:
        structure, block, share = None, self._block(layer), self._share()
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

    def _share(self) -> float | None:
        return self.sparsity if self.sparsity is not None else self.final_sparsity
