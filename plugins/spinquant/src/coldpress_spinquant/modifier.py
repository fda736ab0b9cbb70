"""SpinQuantModifier: settings and wiring of the rotations R1 to R4."""

import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, Literal

from attrs import evolve, field, frozen
from attrs.validators import ge, gt
from torch import Tensor, nn

from coldpress.numerics import Rotation, TransformType, rotation_of
from coldpress.plugin import (
    Attachment,
    AttentionRotation,
    Decision,
    Heads,
    InputRotation,
    Layer,
    ModelError,
    Needs,
    NumericsError,
    RotationSite,
    Rotator,
    Stage,
    State,
    attention_modules,
    block_names,
    forget_gains,
    hookimpl,
    layers_outside,
    rotate_layer,
    rotate_stage,
    rotations_of,
    stream_of,
)
from coldpress_spinquant.algorithm import seeded
from coldpress_spinquant.learning import Reader, dynamic, from_text, gains_of, learn, to_text
from coldpress_spinquant.mapping import check_mappings, check_norm_mappings

log = logging.getLogger(__name__)

RotationName = Literal["R1", "R2", "R3", "R4"]
ROTATIONS: tuple[RotationName, ...] = ("R1", "R2", "R3", "R4")


LEARNABLE: tuple[RotationName, ...] = ("R1", "R2", "R4")


def _upper(value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else list(value)
    return [str(name).upper() for name in names]


def _upper_or_switch(value: Any) -> bool | list[str]:
    return value if isinstance(value, bool) else _upper(value)


@frozen(kw_only=True, eq=False)
class SpinQuantModifier(Rotator):
    """Rotate the residual stream, value heads, queries and keys, and the inputs of the last layers of blocks.

    Further settings are those of `Rotator`.

    Attributes:
        rotations: any of R1 (the residual stream, fused into weights), R2 (value heads, fused), R3 (queries and keys
            where attention runs, online) and R4 (inputs of the down projections, online).
        targets: layers whose heads R2, and whose inputs R4, may rotate; R1 rotates all that reads or makes the stream.
        ignore: those that R2 and R4 leave alone.
        randomize: random signs before each Hadamard matrix: `transform_type` is `random-hadamard`.
        transform_block_size: channels that R1 and R4 mix with each other; R2 and R3 mix those of a head.
        learnable: which of R1, R2 and R4 are learned, from the Hadamard matrices on, so that the loss of the model
            with rounded inputs is small; true for R1 and R2, which are in weights afterwards, as the paper has it.
            A learned R4 is stored, one for all layers of a width, and engines multiply by it.  Needs data, and a
            later modifier that quantizes inputs.
        num_steps: of learning, one sample each.
        learning_rate: of the first of them; it falls as a cosine does.
        mappings: names of llm-compressor's mapping; probing finds them, and refuses false ones.
        norm_mappings: the same of norms and the layers that read them.
    """

    rotations: list[str] = field(factory=lambda: ["R1", "R2"], converter=_upper)
    randomize: bool = False
    learnable: bool | list[str] = field(default=False, converter=_upper_or_switch)
    num_steps: int = field(default=100, validator=ge(1))
    learning_rate: float = field(default=1.5, validator=gt(0.0))
    mappings: Any = None
    norm_mappings: Any = None

    @rotations.validator
    def _check_rotations(self, attribute: object, value: list[str]) -> None:
        unknown = [name for name in value if name not in ROTATIONS]
        if unknown or not value:
            raise ValueError(f"must be some of {', '.join(ROTATIONS)}; got {', '.join(map(repr, unknown)) or 'none'}")

    @learnable.validator
    def _check_learnable_names(self, attribute: object, value: bool | list[str]) -> None:
        for name in value if isinstance(value, list) else ():
            if name not in LEARNABLE:
                why = "; R3 stays a Hadamard matrix, for no engine runs another one" if name == "R3" else ""
                raise ValueError(f"must be true, false or some of {', '.join(LEARNABLE)}; got {name!r}{why}")
            if name not in self.rotations:
                raise ValueError(f"names {name}, which rotations does not have")

    def needs(self) -> Needs:
        """Nothing for fixed rotations; data and a measuring pass for learned ones."""
        return Needs(data=True, propagated_error=False, measuring_pass=True) if self.learnable else Needs()

    def transforms_at_once(self) -> bool:
        """It acts in `initialize`, learned or not."""
        return True

    def unties(self, stage: Stage) -> Sequence[str]:
        """Embeddings and heads, where R1 folds a norm into one and not into the other."""
        return layers_outside(stage) if "R1" in self.rotations else ()

    def check(self, state: State) -> None:
        """See that what is asked for can be rotated.

        Raises:
            ModelError: it cannot be; says which rotation, where, why, and which ones could.
            TargetError: a mapping is not true of the model.
        """
        if "R1" in self.rotations:
            self._check_stream(state)
        whole = Stage.whole(state.model)
        heads, online = self._found(state, whole)
        super().check(state)
        attention = dict(self._attention(state, whole))
        reasons = {
            "R2": bool(heads) or "no block has value heads that a rotation passes",
            "R3": bool(attention) or "transformers dispatches no attention of the model",
            "R4": bool(online) or "a fused rotation reaches the inputs of all layers",
        }
        for _, one in heads:
            self._check_head("R2", one.pair.producer, one.head_dim)
        for name, size in self._attention_sizes(state, attention):
            self._check_head("R3", name, size)
        for layer in whole.every_layer:
            if layer.name in online:
                self._check_width(state, layer)
        missing = {name: reason for name, reason in reasons.items() if name in self.rotations and reason is not True}
        for name, reason in missing.items():
            if set(self.rotations) <= missing.keys():
                raise ModelError(f"{name}: {reason}; leave it out of rotations")
            log.warning("%s rotates nothing: %s", name, reason)
        if self.learnable:
            self._check_learnable(state)
        if self.mappings is not None:
            check_mappings(state, self.mappings)
        if self.norm_mappings is not None:
            check_norm_mappings(state, self.norm_mappings)

    def announced(self, state: State, stage: Stage) -> Sequence[tuple[str, Attachment]]:
        """The online rotations R3 and R4."""
        return [*self._attention(state, stage), *self._last(state, stage)]

    def measure(self, state: State, stage: Stage) -> None:
        """Nothing: what is learned is learned from all stages at once."""

    def decide(self, state: State, measured: Sequence[Any]) -> Decision:
        """Learn rotations."""
        readers = list(self._readers(state))
        read = {reader.rotation for reader in readers}
        first = {name: one for name, one in self._first(state) if name in read}
        start = {name: one.block_matrix() for name, one in first.items() if self._is_learned(name)}
        fixed = {name: one for name, one in first.items() if name not in start}
        steps, rate = self.num_steps, self.learning_rate
        return Decision(value=to_text(learn(state, readers, start, fixed, steps=steps, learning_rate=rate)))

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Fold norms, rotate the parameters of the stage, and attach what rotates online."""
        if self.learnable and state.decision(self) is None:
            return  # the measuring pass
        stream = stream_of(state) if "R1" in self.rotations else None
        norms = () if stream is None else stream.norms
        changed = rotate_stage(state, stage, norms, self._fused(state, stage))
        for layer in stage.every_layer:
            if layer.name in changed:
                state.report[layer.name].notes["rotated"] = "fused"
        online = dict(self._last(state, stage))
        for layer in stage.every_layer:
            if layer.name in online:
                buffers = self._stored(state, layer, online[layer.name])
                rotate_layer(state, layer, online[layer.name], dim=1, buffers=buffers)
                state.report[layer.name].notes["rotated"] = "fused, online"
        for name, attachment in self._attention(state, stage):
            state.attach(name, attachment)

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Clear what only the run needed."""
        *_, last = (name for name, _ in state.model.named_modules())
        if last in stage.modules:
            forget_gains(state)

    def _found(self, state: State, stage: Stage) -> tuple[list[tuple[str, Heads]], dict[str, InputRotation]]:
        """What R2 and R4 rotate."""
        try:
            return list(self._heads(state, stage)), dict(self._last(state, stage))
        except ModelError as error:
            raise ModelError(f"{error}; if R2 and R4 need not rotate it, ignore its layers") from error

    def _check_stream(self, state: State) -> None:
        try:
            self._residual(state)
        except (ModelError, NumericsError) as error:
            raise ModelError(f"R1: {error}; rotations=['R2', 'R4'] do not need it") from error

    def _check_head(self, rotation: str, name: str, size: int) -> None:
        try:
            rotation_of(size, self._kind())
        except NumericsError as error:
            raise ModelError(
                f"{rotation}: {name}: no Hadamard matrix is known here for heads of {size} channels; set "
                f"transform_type='random-matrix', or leave {rotation} out of rotations"
            ) from error

    def _residual(self, state: State) -> Rotation:
        """R1."""
        stream, learned = stream_of(state), state.decision(self)
        if learned is not None and "R1" in learned:
            block = from_text(learned, "R1")
            return Rotation(stream.width, len(block), block=block)
        return rotation_of(
            stream.width,
            self._kind(),
            block_size=self.transform_block_size,
            keeps_ones=stream.keeps_ones,
            generator=seeded(state.seed, "R1"),
        )

    def _kind(self) -> TransformType:
        return "random-hadamard" if self.randomize and self.transform_type == "hadamard" else self.transform_type

    def _fused(self, state: State, stage: Stage) -> Iterator[tuple[RotationSite, Rotation]]:
        """Where R1 and R2 enter parameters; of R2 those of the stage."""
        if "R1" in self.rotations:
            rotation = self._residual(state)
            for site in stream_of(state).sites:
                yield site, rotation
        for name, heads in self._heads(state, stage):
            yield from heads.rotations(self._head(state, name, heads))

    def _head(self, state: State, block: str, heads: Heads) -> Tensor:
        """R2 of a block, [head_dim, head_dim]."""
        learned = state.decision(self)
        if learned is not None and f"R2 {block}" in learned:
            return from_text(learned, f"R2 {block}")
        return rotation_of(heads.head_dim, self._kind(), generator=seeded(state.seed, f"R2 {block}")).matrix()

    def _is_learned(self, rotation: str) -> bool:
        """Whether a rotation is, by its name: `R1`, `R2` and a block, `R4` and a width."""
        kind = rotation.partition(" ")[0]
        return kind in (("R1", "R2") if self.learnable is True else self.learnable or ())

    def _first(self, state: State) -> Iterator[tuple[str, Rotation]]:
        """The rotations that are not online in attention as they are before any is learned, by name."""
        if "R1" in self.rotations:
            yield "R1", self._residual(state)
        widths = _widths(state)
        for block, heads in self._heads(state, _whole(state)):
            width = widths[heads.readers[0].parameter.removesuffix(".weight")]
            yield f"R2 {block}", Rotation(width, heads.head_dim, block=self._head(state, block, heads))
        for width in {widths[name] for name, _ in self._last(state, _whole(state))}:
            yield f"R4 {width}", self._drawn(state).rotation(width)

    def _check_learnable(self, state: State) -> None:
        """Refuse to learn what cannot be learned.

        Raises:
            ModelError: nothing is to be learned.
        """
        if not any(map(self._is_learned, self.rotations)):
            raise ModelError("learnable: R1 and R2 are learned, and rotations has neither; learnable=['R4'] learns R4")
        if not any(planned.scheme.input_activations for planned in state.plan.values()):
            raise ModelError(
                "learnable: no later modifier quantizes inputs, so no loss is to be made smaller; set learnable=False"
            )
        if self._is_learned("R1") and stream_of(state).keeps_ones:
            raise ModelError("learnable: R1 of a model whose norms subtract the mean is not learned; learn R2 alone")
        if not any(name is not None and self._is_learned(name) for name in self._read(state).values()):
            names = " or ".join(name for name in self.rotations if self._is_learned(name))
            raise ModelError(
                f"learnable: no layer whose inputs are quantized reads what {names} rotates; set learnable=False"
            )

    def _readers(self, state: State) -> Iterator[Reader]:
        """The layers whose inputs the recipe quantizes, with what rotates and scales them."""
        norms = stream_of(state).norms if "R1" in self.rotations else ()
        gains = dict(one for pair in norms for one in gains_of(state, pair))
        for layer, rotation in self._read(state).items():
            args = state.plan[layer].scheme.input_activations
            assert args is not None
            yield Reader(layer, rotation, gains.get(layer), dynamic(args))

    def _read(self, state: State) -> dict[str, str | None]:
        """Name of each layer whose inputs the recipe quantizes to that of the rotation of its inputs."""
        residual = stream_of(state).readers if "R1" in self.rotations else ()
        names = {site.parameter.removesuffix(".weight"): "R1" for site in residual}
        for block, heads in self._heads(state, _whole(state)):
            names |= {site.parameter.removesuffix(".weight"): f"R2 {block}" for site in heads.readers}
        widths = _widths(state)
        names |= {name: f"R4 {widths[name]}" for name, _ in self._last(state, _whole(state))}
        planned = state.plan.items()
        return {layer: names.get(layer) for layer, one in planned if one.scheme.input_activations is not None}

    def _heads(self, state: State, stage: Stage) -> Iterator[tuple[str, Heads]]:
        """Name of a block and value heads of it that R2 rotates."""
        layers = {layer.name for layer in self.layers(stage)}
        for name in self._held(state, stage) if "R2" in self.rotations else ():
            for heads in rotations_of(state, name).heads:
                if heads.readers[0].parameter.removesuffix(".weight") in layers:
                    yield name, heads

    def _attention(self, state: State, stage: Stage) -> Iterator[tuple[str, AttentionRotation]]:
        if "R3" not in self.rotations:
            return
        online = AttentionRotation(group="R3", transform_type=self._kind(), seed=state.seed)
        for name, _ in attention_modules(stage.modules):
            yield name, online

    def _attention_sizes(self, state: State, attention: Container[str]) -> Iterator[tuple[str, int]]:
        """Channels of a head of the queries and keys that R3 rotates, of modules in blocks."""
        for block in self._blocks(state, _whole(state)) if "R3" in self.rotations else ():
            for name, size in rotations_of(state, block).attention:
                if name in attention:
                    yield name, size

    def _last(self, state: State, stage: Stage) -> Iterator[tuple[str, InputRotation]]:
        if "R4" not in self.rotations:
            return
        drawn = self._drawn(state)
        online = evolve(drawn, transform_type="random-hadamard", stored=True) if self._is_learned("R4") else drawn
        layers = {layer.name: layer for layer in self.layers(stage)}
        for block in self._held(state, stage):
            for name in rotations_of(state, block).last:
                if name in layers:
                    yield name, online

    def _drawn(self, state: State) -> InputRotation:
        """R4, before it is learned."""
        size = self.transform_block_size
        return InputRotation(group="R4", block_size=size, transform_type=self._kind(), seed=state.seed)

    def _stored(self, state: State, layer: Layer, online: InputRotation) -> Mapping[str, Tensor]:
        """The matrix of a learned R4, the same tensor for all layers of a width."""
        if not online.stored:
            return {}
        width, known = layer.weight.shape[1], state.fact(_Stored).buffers
        if (id(self), width) not in known:
            learned, name = state.decision(self) or {}, f"R4 {width}"
            block = from_text(learned, name) if name in learned else self._drawn(state).rotation(width).block_matrix()
            known[id(self), width] = online.buffers_of(block.to(layer.weight.device))
        return known[id(self), width]

    def _check_width(self, state: State, layer: Layer) -> None:
        try:
            self._drawn(state).rotation(layer.weight.shape[1])
        except NumericsError as error:
            advice = "set transform_block_size, or transform_type='random-matrix'"
            raise ModelError(f"R4: {layer.name}: {error}; {advice}") from error

    def _blocks(self, state: State, stage: Stage) -> list[str]:
        blocks = state.fact(block_names)
        return [name for name in blocks if name in stage.modules] if blocks else [""]

    def _held(self, state: State, stage: Stage) -> list[str]:
        """The blocks that hold a layer which R2 or R4 may rotate; others, such as those for images, run on no text."""
        parts = [layer.name.split(".") for layer in self.layers(stage)]
        holders = {".".join(names[:depth]) for names in parts for depth in range(len(names))}
        return [name for name in self._blocks(state, stage) if name in holders]


def _whole(state: State) -> Stage:
    return Stage.whole(state.model)


class _Stored:
    """The buffers of learned online rotations, by modifier and width."""

    def __init__(self, model: nn.Module) -> None:
        self.buffers: dict[tuple[int, int], Mapping[str, Tensor]] = {}


def _widths(state: State) -> dict[str, int]:
    """The inputs of each layer, by its name."""
    return {layer.name: layer.weight.shape[1] for layer in _whole(state).every_layer}
