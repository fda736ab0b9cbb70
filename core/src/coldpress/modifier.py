"""Modifier: the frozen settings of one algorithm, and what core must know of it without knowing its name."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, fields, frozen

from coldpress.arguments.settings import known_settings, short_repr
from coldpress.attachment import Attachment
from coldpress.errors import TargetError, must_implement
from coldpress.layer_report import CORE_NOTES, Note
from coldpress.schemes import Scheme
from coldpress.stage import Layer, Stage
from coldpress.statistic import GradientStatistic

if TYPE_CHECKING:
    from coldpress.lifecycle import Lifecycle
    from coldpress.state import State

log = logging.getLogger(__name__)

QUANTIZES = "quantizes"
"""Every layer that it claims ends up quantized, or is reported as skipped with a reason."""

PRUNES = "prunes"
"""Every layer that it claims ends up with a new weight, or is reported as skipped with a reason."""

TRANSFORMS = "transforms"
"""It changes weights and what flows between layers, and keeps the model's function: an equivalent transformation, which
belongs before anything that quantizes.  Only such a modifier may change weights in `initialize`."""

SPARES_QUANTIZED = "spares_quantized"
"""A transformation that leaves out layers which are quantized already, so it may come after a quantizer of others."""

RUNS_LAST = "runs_last"
"""It runs after all modifiers that are not so, wherever a recipe has it."""

DROPS_EXPERTS = "drops_experts"
"""What it decides leaves the model fewer experts (`Decision.kept_experts`); no weight that stays is changed."""

TRAITS = frozenset({QUANTIZES, PRUNES, TRANSFORMS, SPARES_QUANTIZED, RUNS_LAST, DROPS_EXPERTS})


@frozen(kw_only=True)
class Needs:
    """What a modifier needs of a run, with the settings that it has.

    Attributes:
        data: calibration batches.
        propagated_error: it calibrates on activations from the compressed preceding blocks; where no modifier of a
            recipe does, the outputs of the original blocks are passed on, and no block runs twice.
        original_inputs: statistics of inputs beside those of the original model (asymmetric calibration), and the
            calls of a stage as the original model makes them.
        original_weights: the weights that the stage had before it was compressed, through equivalent transformations:
            `state.original_weight`, `state.original`.
        calls: the calls of a stage with their arguments: `state.calls`.  The stage is not divided.
        gradients: calls record the graph inside of `torch.enable_grad()`; without it they never do.
        loss_gradients: statistics of the gradient of the model's loss by the outputs of its layers, such as `Gamma()`;
            collected by one reverse sweep before the first stage, and read like others.
        whole_stage: the stage is not divided into parts that are compressed one after the other.
        batch_boundaries: the result depends on which samples are in one batch, such as averages over batches.
        measuring_pass: all stages are measured, and one decision is made, before the first is compressed: `measure`
            and `decide`.
        training: it acts while a model is trained and not otherwise; a recipe for one shot that has it is refused.
        measures_only: it reads data in its measuring pass only; the pass that compresses need run none for it.
    """

    data: bool = False
    propagated_error: bool = True
    original_inputs: bool = False
    original_weights: bool = False
    calls: bool = False
    gradients: bool = False
    loss_gradients: tuple[GradientStatistic, ...] = ()
    whole_stage: bool = False
    batch_boundaries: bool = False
    measuring_pass: bool = False
    training: bool = False
    measures_only: bool = False


@frozen(kw_only=True)
class Decision:
    """What a modifier decides after its measuring pass.

    Attributes:
        value: for its hooks, which read it by `state.decision`; JSON must be able to hold it.
        schemes: layer name to scheme, in place of what the layer's quantizer would take.
        kept_experts: name of each module of experts to the numbers of those that stay, in order; the others are
            dropped before the first stage is compressed, and the plan of layers is made anew.  All modules of the model
            must be named, with as many experts each; none are where no expert is dropped.
    """

    value: Any = None
    schemes: Mapping[str, Scheme] = field(factory=dict)
    kept_experts: Mapping[str, Sequence[int]] = field(factory=dict)


@frozen(kw_only=True)
class Cost:
    """What compressing some layers takes beside running their stage.

    Attributes:
        flops: operations of matrix products and factorizations.
        elements: numbers that elementwise operations go over, counted once for each pass.
        steps: operations one after the other that are over in no time and cost the call alone.
        nbytes: held at once beside the weights, their codes and statistics.
        divided: whether several ranks share it, by `state.share.divided`.
    """

    flops: float = 0.0
    elements: float = 0.0
    steps: float = 0.0
    nbytes: int = 0
    divided: bool = False


HOUSEKEEPING = ("group", "index", "start", "end", "update", "requires_calibration_data")
"""What llm-compressor keeps beside the settings of every modifier; without effect there and here."""

FORMER = ("sequential_update", "sequential_targets", "disable_quantization_observer_epoch", "num_calibration_steps")
"""Settings of modifiers in its early releases, up to 0.10, of what the run decides here; without effect."""


def names(value: str | Iterable[str]) -> list[str]:
    """One pattern or several, as a list.

    Raises:
        TargetError: something else.
    """
    found = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    if not all(isinstance(one, str) for one in found):
        raise TargetError(f"targets and ignore take names, classes and 're:' patterns, as text, got {value!r}")
    return found


def drop_housekeeping(cls: type[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those of `HOUSEKEEPING` and `FORMER` that a class has no field for."""
    own = {attribute.alias for attribute in fields(cls)}
    dropped = {name: value for name, value in settings.items() if name in (*HOUSEKEEPING, *FORMER) and name not in own}
    if dropped.get("sequential_targets") is not None:
        log.warning("%s: sequential_targets is an argument of the run, and has no effect here", cls.__name__)
    return {name: value for name, value in settings.items() if name not in dropped}


class _TakesHousekeeping(type):
    """Drops the keywords of `HOUSEKEEPING` and `FORMER` that a class has no field for, and refuses unknown ones."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **more: Any) -> Any:
        return super().__new__(mcs, name, bases, {"__repr__": short_repr, **namespace}, **more)

    def __call__(cls, *args: Any, **settings: Any) -> Any:
        return super().__call__(*args, **known_settings(cls, drop_housekeeping(cls, settings)))


@frozen(kw_only=True, eq=False)
class Modifier(metaclass=_TakesHousekeeping):
    """One step of a recipe; subclasses add their settings as attrs fields and implement hooks.

    Its fields are the recipe schema: renaming one is a breaking change.
    `eq=False`, because two equal steps of a recipe are still two steps.

    A class declares what it notes of layers in `notes`; those of its bases are declared too.

    Attributes:
        targets: layers to change: exact names, `re:` patterns, or class names.
        ignore: layers to leave alone, in the same forms; wins over `targets`.
    """

    traits: ClassVar[frozenset[str]] = frozenset()
    notes: ClassVar[tuple[Note, ...]] = ()

    targets: list[str] = field(factory=lambda: ["Linear"], converter=names)
    ignore: list[str] = field(factory=list, converter=names)

    def needs(self) -> Needs:
        """What it needs of a run with these settings; nothing but weights by default."""
        return Needs()

    def needs_data(self) -> bool:
        """Whether it needs calibration batches, or a modifier that it stands for."""
        return any(step.needs().data for step in self.expand())

    def transforms_at_once(self) -> bool:
        """Whether it is a transformation that acts in `initialize`: one that needs no data."""
        return TRANSFORMS in self.traits and hasattr(type(self), "initialize") and not self.needs_data()

    def expand(self) -> "Sequence[Modifier]":
        """The steps that this one stands for, in order; itself, unless its settings are short for several."""
        return (self,)

    def layers(self, stage: Stage) -> list[Layer]:
        """The layers of a stage that this modifier claims, in model order."""
        return stage.layers(self.targets, self.ignore)

    def patterns(self) -> list[str]:
        """Every target that must match some layer of the model; one that matches nothing is an error."""
        return list(self.targets)

    def matching(self, pattern: str, stage: Stage) -> list[Layer]:
        """The layers of a stage that one of `patterns` means, ignored ones among them."""
        return stage.layers([pattern])

    def scheme_for(self, layer: Layer) -> Scheme | None:
        """How its settings quantize a layer that it claims; None when they do not.

        Core asks before the run starts, so that a scheme that does not fit a layer costs no time.  What holds
        is `state.scheme_of(layer)`, which a decision may have changed.
        """
        return None

    def adopts(self, layer: Layer) -> bool:
        """Whether it quantizes a layer that it claims by the scheme which an earlier modifier has for it."""
        return False

    def cost(self, layers: Sequence[Layer], tokens: int) -> Cost:
        """What `finalize` takes for layers that read one input, for plans; by default the passes of rounding.

        Args:
            layers: that it claims; weights may be on the meta device.
            tokens: of the calibration data; 0 where none are read.
        """
        sizes = [layer.weight.numel() for layer in layers]
        return Cost(elements=20.0 * sum(sizes), nbytes=12 * max(sizes, default=0))

    def observes(self, stage: Stage) -> list[str]:
        """Names of the modules whose inputs, or whose attention's, it may request statistics of: its layers."""
        return [layer.name for layer in self.layers(stage)]

    def attachments(self, stage: Stage) -> Sequence[tuple[str, Attachment]]:
        """What it will attach to modules of a stage, by name; asked before the run too, of the model as one stage."""
        return ()

    def training(self) -> "Lifecycle | None":
        """What it does while a model is trained, new for each run (see `coldpress.lifecycle`); None where nothing.

        A modifier that has a lifecycle does not compress in `coldpress.train`: its hooks are for one shot.
        """
        return None

    def announced(self, state: "State", stage: Stage) -> Sequence[tuple[str, Attachment]]:
        """The same, where it depends on the model: with the state; `attachments` unless overridden."""
        return self.attachments(stage)

    def unties(self, stage: Stage) -> Sequence[str]:
        """Names of layers that must have weights of their own, beside those that it claims; asked before the run."""
        return ()

    def check(self, state: "State") -> None:
        """Before the run: refuse a model that the settings do not fit, where no other question finds that out.

        Raises:
            ColdpressError: says what does not fit, where, and what to do.
        """

    def measure(self, state: "State", stage: Stage) -> Any:
        """In the measuring pass, in place of `finalize`: what `decide` must know of this stage.

        Args:
            state: statistics that `initialize` requested are there; weights must not be changed.
            stage: one after the other, in the order of the run.

        Returns:
            Something that JSON can hold; an interrupted run reads it again.
        """
        raise must_implement(self, "measure(state, stage), as its needs() say")

    def decide(self, state: "State", measured: Sequence[Any]) -> Decision:
        """After the measuring pass: one decision for the whole model, from what `measure` returned of each stage."""
        raise must_implement(self, "decide(state, measured), as its needs() say")


def expanded(modifiers: Sequence[Modifier]) -> list[Modifier]:
    """The steps of a recipe in the order in which they run, those that are short for several written out."""
    steps = [step for modifier in modifiers for step in modifier.expand()]
    return sorted(steps, key=lambda step: RUNS_LAST in step.traits)


def declared_notes(modifiers: Iterable[Modifier]) -> dict[str, Note]:
    """Key to what it means, of all that core and these modifiers note of layers."""
    classes = (base for modifier in modifiers for base in type(modifier).__mro__)
    own = (note for base in classes for note in vars(base).get("notes", ()))
    return {note.key: note for note in (*CORE_NOTES, *own)}
