"""QuIPModifier: settings and wiring of incoherence processing."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from attrs import field, frozen
from attrs.validators import in_

from coldpress.numerics import TRANSFORM_TYPES, TransformType
from coldpress.plugin import (
    Attachment,
    InputRotation,
    Layer,
    ModelError,
    Note,
    NumericsError,
    OnlineRotation,
    OutputRotation,
    Rotator,
    Stage,
    State,
    TargetError,
    block_names,
    hookimpl,
    read_without_call,
    rotate_layer,
)
from coldpress_quip.algorithm import incoherence

SIDES: dict[str, tuple[type[OnlineRotation], int]] = {"v": (InputRotation, 1), "u": (OutputRotation, 0)}


def _names(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _lower(value: Any) -> list[str]:
    return [str(name).lower() for name in ([value] if isinstance(value, str) else value)]


@frozen(kw_only=True, eq=False)
class QuIPModifier(Rotator):
    """Rotate inputs and outputs of each layer as the model runs, and its weight so that the function is kept.

    Further settings are those of `Rotator`.

    Attributes:
        rotations: v (inputs) and u (outputs).
        targets: layers to rotate; where the recipe quantizes layers, those that it quantizes.
        ignore: layers to leave alone.
        transform_type: `random-hadamard` unless set.
        randomize: one matrix for each layer, which is not done, there neither: False.
        learnable: learned matrices, likewise.
    """

    notes: ClassVar[tuple[Note, ...]] = (
        Note("incoherence", "", "largest weight over the root mean square, before and after the rotations"),
    )

    rotations: list[str] = field(factory=lambda: ["v"], converter=_lower)
    ignore: list[str] = field(factory=lambda: ["lm_head"], converter=_names)
    transform_type: TransformType = field(default="random-hadamard", validator=in_(TRANSFORM_TYPES))
    randomize: bool = field(default=False, validator=in_([False]))
    learnable: bool = field(default=False, validator=in_([False]))

    @rotations.validator
    def _check_rotations(self, attribute: object, value: list[str]) -> None:
        unknown = [name for name in value if name not in SIDES]
        if unknown or not value:
            raise ValueError(f"must be some of {', '.join(SIDES)}; got {', '.join(map(repr, unknown)) or 'none'}")

    def check(self, state: State) -> None:
        """See that every layer can be rotated.

        Raises:
            TargetError: a target is no linear layer.
            ModelError: a width cannot be rotated; says which block sizes would do.  Or nothing calls a layer, or it is
                rotated already.
        """
        super().check(state)
        uncalled = {name for block in state.fact(block_names) or [""] for name in read_without_call(state, block)}
        for layer in self._chosen(state, Stage.whole(state.model)):
            if "Linear" not in layer.classes:
                raise TargetError(f"{layer.name} is no linear layer, and has no inputs to rotate: ignore it")
            if layer.name in uncalled:
                raise ModelError(
                    f"{layer.name}: the model multiplies by its weight without calling it, so nothing would rotate "
                    "what it reads: ignore it"
                )
            for online, dim in self._online(state):
                try:
                    online.rotation(layer.weight.shape[dim])
                except NumericsError as error:
                    raise ModelError(f"{online.group}: {layer.name}: {error}; set transform_block_size") from error

    def announced(self, state: State, stage: Stage) -> Sequence[tuple[str, Attachment]]:
        """The online rotations of every layer."""
        return [(layer.name, online) for layer in self._chosen(state, stage) for online, _ in self._online(state)]

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Rotate the layers of the stage."""
        for layer in self._chosen(state, stage):
            before = incoherence(layer.weight)
            for online, dim in self._online(state):
                rotate_layer(state, layer, online, dim=dim)
            notes = {"rotated": "online", "incoherence": [round(before, 3), round(incoherence(layer.weight), 3)]}
            state.report[layer.name].notes.update(notes)

    def _chosen(self, state: State, stage: Stage) -> list[Layer]:
        return [layer for layer in self.layers(stage) if not state.plan or layer.name in state.plan]

    def _online(self, state: State) -> Iterator[tuple[OnlineRotation, int]]:
        for name in self.rotations:
            kind, dim = SIDES[name]
            size, seed = self.transform_block_size, state.seed
            yield kind(group=name, block_size=size, transform_type=self.transform_type, seed=seed), dim
