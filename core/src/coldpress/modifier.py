"""Modifier: the frozen settings of one algorithm, and what core must know of it without knowing its name."""

from collections.abc import Iterable
from typing import Any, ClassVar

from attrs import field, fields, frozen

from coldpress.schemes import Scheme
from coldpress.stage import Layer, Stage

READS_DATA = "reads_data"
"""The modifier needs calibration batches, whatever its settings."""

QUANTIZES = "quantizes"
"""Every layer that it claims ends up quantized, or is reported as skipped with a reason."""

PRUNES = "prunes"
"""Every layer that it claims ends up with a new weight, or is reported as skipped with a reason."""

TRANSFORMS = "transforms"
"""It changes what flows between layers and keeps the model's function: it belongs before anything that quantizes."""

RUNS_LAST = "runs_last"
"""It looks after what all others made of its layers: no modifier that comes after it may claim one of them."""

TRAITS = frozenset({READS_DATA, QUANTIZES, PRUNES, TRANSFORMS, RUNS_LAST})


HOUSEKEEPING = ("group", "index", "start", "end", "update", "requires_calibration_data")
"""What llm-compressor keeps beside the settings of every modifier; without effect there and here."""


def names(value: str | Iterable[str]) -> list[str]:
    """One pattern or several, as a list."""
    return [value] if isinstance(value, str) else list(value)


class _TakesHousekeeping(type):
    """Drops the keywords of `HOUSEKEEPING` that a class has no field for."""

    def __call__(cls, *args: Any, **settings: Any) -> Any:
        own = {attribute.alias for attribute in fields(cls)}  # type: ignore[arg-type]
        kept = {name: value for name, value in settings.items() if name in own or name not in HOUSEKEEPING}
        return super().__call__(*args, **kept)


@frozen(kw_only=True, eq=False)
class Modifier(metaclass=_TakesHousekeeping):
    """One step of a recipe; subclasses add their settings as attrs fields and implement hooks.

    Its fields are the recipe schema: renaming one is a breaking change.
    `eq=False`, because two equal steps of a recipe are still two steps.

    Attributes:
        targets: layers to change: exact names, `re:` patterns, or class names.
        ignore: layers to leave alone, in the same forms; wins over `targets`.
    """

    traits: ClassVar[frozenset[str]] = frozenset()

    targets: list[str] = field(factory=lambda: ["Linear"], converter=names)
    ignore: list[str] = field(factory=list, converter=names)

    def layers(self, stage: Stage) -> list[Layer]:
        """The layers of a stage that this modifier claims, in model order."""
        return stage.layers(self.targets, self.ignore)

    def patterns(self) -> list[str]:
        """Every target that must match some layer of the model; one that matches nothing is an error."""
        return list(self.targets)

    def scheme_for(self, layer: Layer) -> Scheme | None:
        """How this modifier will quantize a layer that it claims; None when it quantizes nothing.

        Core asks before the run starts, so that a scheme that does not fit a layer costs nobody an hour.
        """
        return None

    def needs_data(self) -> bool:
        """Whether it must see calibration batches with these settings."""
        return READS_DATA in self.traits

    def compares(self) -> bool:
        """Whether it asks for statistics of inputs beside those of the original model (`Statistic.compares`)."""
        return False

    def follows_error(self) -> bool:
        """Whether it makes more of batches that show what compressed stages put out than of the original's.

        Asked of a modifier that needs data; where none of a recipe does, a stage need not run again once compressed.
        """
        return True
