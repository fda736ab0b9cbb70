"""Messages in the words of the terminal: `text_column='words'` of Python is `--text-column words` there."""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

from attrs import fields
from typer.models import OptionInfo

from coldpress.arguments import (
    DatasetArguments,
    ModelArguments,
    OutputArguments,
    PipelineArguments,
    RecipeArguments,
    TrainingArguments,
)

_CLASSES = (ModelArguments, RecipeArguments, DatasetArguments, PipelineArguments, OutputArguments, TrainingArguments)
_RENAMED = {  # arguments whose option has another name
    "output_dir": "output",
    "precision": "dtype",
    "recipe_args": "recipe_arg",
    "trust_remote_code_model": "trust_remote_code",
    "distill_teacher": "teacher",
    "resume_from_checkpoint": "resume",
}
_OF_RECIPES = {"recipe", "model", "stage", "pipeline"}  # words that messages use for other things too
_OUTPUT = re.compile(r"(?<![\w.$'\"{/-])output_dir(?= |$)")
_VALUE = r"""'[^']*'|"[^"]*"|\.\.\.|[\w.-]*\w"""
_GIVEN = re.compile(rf"""(?P<option>--[\w-]+ )?(?<![\w.$'"{{/-])(?P<name>[a-z_]+)=(?P<value>{_VALUE})?""")


def in_options(command: Callable[..., Any]) -> Callable[[str], str]:
    """A function that says what a message names as arguments of Python by the options of a command.

    Args:
        command: whose parameters are options; what it has no option for stays as it is.
    """

    def translated(message: str) -> str:
        flags = dict(_flags(command))
        message = _GIVEN.sub(lambda match: _option(match, flags), message)
        return _OUTPUT.sub("--output", message) if "output_dir" in flags else message

    return translated


def _option(match: re.Match[str], flags: dict[str, tuple[str, str | None, bool]]) -> str:
    name, value = match["name"], match["value"]
    if name not in flags or match["option"]:  # `--recipe-arg seed=3` is the terminal's already
        return match[0]
    flag, negated, switch = flags[name]
    if not switch:
        return flag if value is None else f"{flag} {value}"
    if value in (None, "True"):
        return flag
    return negated if value == "False" and negated else match[0]


def _flags(command: Callable[..., Any]) -> Iterator[tuple[str, tuple[str, str | None, bool]]]:
    """Name of each argument that has an option to that, its negation, and whether it is a switch."""
    parameters = inspect.signature(command).parameters
    for argument in dict.fromkeys(field.name for cls in _CLASSES for field in fields(cls)):
        parameter = parameters.get(_RENAMED.get(argument, argument))
        if parameter is None or argument in _OF_RECIPES:
            continue
        found = next((one for one in get_args(parameter.annotation) if isinstance(one, OptionInfo)), None)
        if found is None:
            continue
        named = next(iter(_names(found)), f"--{parameter.name.replace('_', '-')}")
        flag, _, negated = named.partition("/")
        switch = bool in (kind := get_args(parameter.annotation)[0], *get_args(kind))
        yield argument, (flag, negated or None, switch)


def _names(found: OptionInfo) -> list[str]:
    """Names of an option as they are written down; typer keeps the first where a default could stand."""
    first = [found.default] if isinstance(found.default, str) and found.default.startswith("-") else []
    return [*first, *(found.param_decls or ())]
