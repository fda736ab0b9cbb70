"""Recipe: an ordered list of modifiers, the pipeline that runs them and the format that stores the result."""

import logging
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from attrs import Attribute, evolve, field, frozen

from coldpress.errors import RecipeError
from coldpress.modifier import QUANTIZES, SPARES_QUANTIZED, TRANSFORMS, Modifier
from coldpress.spelling import suggest

log = logging.getLogger(__name__)

SEVERAL = "several"
"""The format that stands for a list of formats."""


@frozen
class Choice:
    """A pipeline or a checkpoint format and its settings, not yet looked up.

    Attributes:
        name: what the registry knows it by.
        settings: fields of the plugin that differ from their defaults.
    """

    name: str
    settings: dict[str, Any] = field(factory=dict, converter=dict)


def _choice(value: Choice | str | None) -> Choice | None:
    return Choice(value) if isinstance(value, str) else value


def _shown(choice: Choice) -> str:
    return repr(choice) if choice.settings else repr(choice.name)


def _names(value: Iterable[str | None]) -> tuple[str | None, ...]:
    return tuple(value)


def _flat(value: Modifier | Iterable[Any]) -> tuple[Any, ...]:
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        return tuple(found for item in value for found in _flat(item))
    return (value,)


@frozen
class Recipe:
    """What to do with a model.

    Attributes:
        modifiers: the steps, in order; one modifier or nested lists are understood.
        pipeline: who cuts the model into stages; a name is understood; None lets the run choose.
        format: the checkpoint format; a name is understood; None lets the run choose.
        stages: for each modifier the name of its stage in the recipe file; None where it has none.
    """

    modifiers: tuple[Modifier, ...] = field(converter=_flat)
    pipeline: Choice | None = field(default=None, converter=_choice)
    format: Choice | None = field(default=None, converter=_choice)
    stages: tuple[str | None, ...] = field(kw_only=True, converter=_names)

    @stages.default
    def _no_stages(self) -> tuple[None, ...]:
        return (None,) * len(self.modifiers)

    @modifiers.validator
    def _check_modifiers(self, attribute: "Attribute[Any]", value: tuple[Any, ...]) -> None:
        wrong = [
            f"modifiers[{i}]: expected a Modifier, got {_name(item)}"
            for i, item in enumerate(value)
            if not isinstance(item, Modifier)
        ]
        wrong = wrong or [*_moved_too_late(value), *_acts_earlier(value)]
        if wrong:
            raise RecipeError(wrong)

    @stages.validator
    def _check_stages(self, attribute: "Attribute[Any]", value: tuple[Any, ...]) -> None:
        if len(value) != len(self.modifiers):
            raise RecipeError([f"{len(value)} stages are named for {len(self.modifiers)} modifiers"])

    def __repr__(self) -> str:
        named = {"pipeline": self.pipeline, "format": self.format}
        more = "".join(f", {key}={_shown(value)}" for key, value in named.items() if value is not None)
        stages = f", stages={list(self.stages)}" if any(self.stages) else ""
        return f"Recipe([{', '.join(map(repr, self.modifiers))}]{more}{stages})"

    def _repr_html_(self) -> str:
        """For notebooks: the YAML that reads as this recipe."""
        from coldpress.recipe.writing import write_recipe

        try:
            text = write_recipe(self)
        except RecipeError:  # a setting that text cannot hold
            text = repr(self)
        return f"<pre>{escape(text)}</pre>"

    def only(self, stage: str) -> "Recipe":
        """The recipe of the stages whose names begin with `stage`.

        Raises:
            RecipeError: no stage does.
        """
        kept = select(self.stages, stage)
        return evolve(self, modifiers=[self.modifiers[i] for i in kept], stages=[self.stages[i] for i in kept])


def select(stages: Iterable[str | None], prefix: str) -> list[int]:
    """Where in `stages` a name begins with `prefix`; those that are left out are named.

    Raises:
        RecipeError: nowhere; the names that there are come with it.
    """
    stages = list(stages)
    kept = [i for i, stage in enumerate(stages) if stage is not None and stage.startswith(prefix)]
    if not kept:
        known = list(dict.fromkeys(stage for stage in stages if stage is not None))
        there = f"{suggest(prefix, known)} (stages: {', '.join(known)})" if known else ": the recipe has no stages"
        raise RecipeError([f"no stage begins with {prefix!r}{there}"])
    left_out = dict.fromkeys(stage for i, stage in enumerate(stages) if i not in kept and stage is not None)
    if left_out:
        log.warning("stage=%r leaves out of the recipe: %s", prefix, ", ".join(left_out))
    return kept


def _moved_too_late(modifiers: tuple[Modifier, ...]) -> list[str]:
    """Equivalent transformations that come after a modifier has fixed the codes of weights."""
    quantizer, problems = None, []
    last = max((i for i, one in enumerate(modifiers) if any(QUANTIZES in s.traits for s in one.expand())), default=-1)
    for position, modifier in enumerate(modifiers):
        name = type(modifier).__name__
        spares = SPARES_QUANTIZED in modifier.traits and position <= last
        if quantizer is not None and TRANSFORMS in modifier.traits and not spares:
            problems.append(
                f"modifiers[{position}]: {name} moves scales between layers, and {quantizer} has quantized weights "
                f"before it, which would no longer fit; put {name} before {quantizer}"
            )
        if quantizer is None and any(QUANTIZES in step.traits for step in modifier.expand()):
            quantizer = name
    return problems


def _acts_earlier(modifiers: tuple[Modifier, ...]) -> list[str]:
    """Equivalent transformations that act before any batch runs, and are named after a modifier that acts later."""
    problems, later = [], None
    for position, modifier in enumerate(modifiers):
        name, at_once = type(modifier).__name__, modifier.transforms_at_once()
        if at_once and later is not None:
            problems.append(
                f"modifiers[{position}]: {name} transforms a stage before any batch runs through it, and {later} after "
                f"that, whatever their order; put {name} before {later}"
            )
        elif not at_once:
            later = later or name
    return problems


def _name(item: object) -> str:
    return f"the class {item.__name__}; call it" if isinstance(item, type) else type(item).__name__
