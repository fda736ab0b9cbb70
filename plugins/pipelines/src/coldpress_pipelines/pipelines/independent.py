"""independent: each modifier goes over the whole model by itself, as in llm-compressor; for comparison."""

from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar

from attrs import field, fields, frozen
from attrs.validators import ge, in_

from coldpress.plugin import Call, LossGradient, Outline, Pass, Pipeline, ReverseStep, Stage, State
from coldpress_pipelines.offload import DEFAULT_LIMIT, PLACES, Place
from coldpress_pipelines.pipelines.layer_sequential import LayerSequential
from coldpress_pipelines.pipelines.sequential import Sequential
from coldpress_pipelines.walking import as_list

_INNER: Mapping[str, type[Sequential | LayerSequential]] = {
    "sequential": Sequential,
    "layer_sequential": LayerSequential,
}


@frozen(kw_only=True, eq=False)
class Independent(Pipeline):
    """As many sweeps over the model as the recipe has modifiers, one after the other.

    A modifier sees the model that the one before left as a whole, where a shared sweep shows it what the one before
    left of the stages so far.  A modifier that reads no data runs nothing.

    Attributes:
        pipeline: which pipeline goes over the model: "sequential" or "layer_sequential".
        sequential_targets: blocks to stop at, by name, `re:` pattern or class; None finds the model's lists of blocks.
        propagate_error: later blocks see the outputs of compressed ones; False shows them the original's outputs, None
            does so where no modifier makes use of the others.
        true_sequential: whether batches run through a block layer by layer; of "sequential" only.
        offload_activations: where activations wait between two stages: "auto", on a CUDA device while half of its
            memory is free, else in CPU memory; "cpu", in CPU memory; or "disk", in files beyond the limit.
        offload_limit: bytes of activations that "disk" leaves in memory.
    """

    shares_sweeps: ClassVar[bool] = False
    holds_calls: ClassVar[bool] = True
    runs_backwards: ClassVar[bool] = True

    pipeline: str = field(default="sequential", validator=in_(tuple(_INNER)))
    sequential_targets: list[str] | None = field(default=None, converter=as_list)
    propagate_error: bool | None = None
    true_sequential: bool | None = None
    offload_activations: Place = field(default="auto", validator=in_(PLACES))
    offload_limit: int = field(default=DEFAULT_LIMIT, validator=ge(0))

    def stages(self, state: State) -> Iterator[Stage]:
        """Yield what the inner pipeline yields; core asks once for each modifier."""
        yield from self._inner().stages(state)

    def outline(self, state: State, *, divisible: bool = False) -> Outline:
        """What the inner pipeline does; core asks once for each modifier."""
        return self._inner().outline(state, divisible=divisible)

    def count(self, state: State) -> int:
        """As many as the model has parts."""
        return self._inner().count(state)

    def parts(self, state: State, stage: Stage) -> Iterator[Stage]:
        """Divide the stage as the inner pipeline does."""
        yield from self._inner().parts(state, stage)

    def sweep(self, state: State, stage: Stage) -> Iterator[Pass]:
        """Run the stage as the inner pipeline does."""
        yield from self._inner().sweep(state, stage)

    def calls(
        self, state: State, stage: Stage, *, original: bool = False, batches: Collection[int] | None = None
    ) -> Iterator[Call]:
        """Yield what the inner pipeline yields."""
        yield from self._inner().calls(state, stage, original=original, batches=batches)

    def needs_sweep(self, state: State, stage: Stage) -> bool:
        """As the inner pipeline says."""
        return self._inner().needs_sweep(state, stage)

    def reverse_sweep(self, state: State, loss: LossGradient) -> Iterator[ReverseStep]:
        """Run backwards as the inner pipeline does, once for all modifiers."""
        yield from self._inner().reverse_sweep(state, loss)

    def _inner(self) -> Sequential | LayerSequential:
        inner = _INNER[self.pipeline]
        return inner(**{setting.name: getattr(self, setting.name) for setting in fields(inner)})
