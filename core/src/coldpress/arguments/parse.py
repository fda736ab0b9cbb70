"""Named values, sorted by subject and checked."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from attrs import fields, fields_dict

from coldpress import registry
from coldpress.arguments.dataset import DatasetArguments
from coldpress.arguments.interpreter import check_interpreter
from coldpress.arguments.model import ModelArguments
from coldpress.arguments.output import OutputArguments
from coldpress.arguments.pipeline import PipelineArguments
from coldpress.arguments.recipe import RecipeArguments
from coldpress.arguments.without_effect import WITHOUT_EFFECT
from coldpress.errors import ArgumentError
from coldpress.spelling import suggest

log = logging.getLogger(__name__)


class Arguments(NamedTuple):
    """All arguments of one run, by subject."""

    model: ModelArguments
    recipe: RecipeArguments
    dataset: DatasetArguments
    pipeline: PipelineArguments
    output: OutputArguments


def warn_idle(arguments: Any, names: Iterable[str], reason: str) -> None:
    """Log which of these arguments were set and cannot act on what they were given together with.

    Args:
        arguments: of one of the classes above.
        names: of some of its attributes.
        reason: why they cannot act.
    """
    known = fields_dict(type(arguments))
    for name in names:
        default: Any = known[name].default
        if getattr(arguments, name) != (default.factory() if hasattr(default, "factory") else default):
            log.warning("%s has no effect: %s", name, reason)


_CLASSES = (ModelArguments, RecipeArguments, DatasetArguments, PipelineArguments, OutputArguments)


def argument_names() -> list[str]:
    """Every name that `parse_arguments` knows: those of the classes in their order, then settings of pipelines."""
    return list(dict.fromkeys([*_own_names(), *pipeline_setting_names()]))


def _own_names() -> list[str]:
    return [attribute.name for cls in _CLASSES for attribute in fields(cls)]


def pipeline_setting_names() -> list[str]:
    """Every setting of every installed pipeline, each once."""
    kinds = [plugin.load() for plugin in registry.available("pipelines")]
    return list(dict.fromkeys(setting.name for kind in kinds for setting in fields(kind)))


def parse_arguments(arguments: Mapping[str, Any]) -> Arguments:
    """Sort named values into the classes above and check them.

    A name that core does not have is a setting of a pipeline, if an installed one has it; None leaves its default.
    Arguments in `WITHOUT_EFFECT` that are set to something other than their default are logged as warnings.

    Raises:
        ArgumentError: an unknown name (all of them at once, each with a suggestion), a missing model, a bad value; or
            an interpreter in which transformers does not work.
    """
    check_interpreter()
    known = _own_names()
    others = {name: value for name, value in arguments.items() if name not in known}
    settings = pipeline_setting_names() if others else []
    unknown = [name for name in others if name not in settings]
    if unknown:
        names = [*known, *settings]
        raise ArgumentError("\n".join(f"{name!r} is not an argument{suggest(name, names)}" for name in unknown))
    given = {"model": None, **arguments}
    if passed := {name: value for name, value in others.items() if value is not None}:
        given["pipeline_settings"] = {**given.get("pipeline_settings", {}), **passed}
    parsed = Arguments(
        *(cls(**{a.name: given[a.name] for a in fields(cls) if a.name in given}) for cls in _CLASSES)  # type: ignore[arg-type]
    )
    for values in parsed:
        for name in fields_dict(type(values)):
            if name in WITHOUT_EFFECT:
                warn_idle(values, [name], WITHOUT_EFFECT[name])
    return parsed
