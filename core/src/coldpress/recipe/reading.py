"""Reading: whatever a user calls a recipe, to a `Recipe`."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from coldpress import registry
from coldpress.errors import BrokenPluginError, PluginError, RecipeError
from coldpress.modifier import HOUSEKEEPING, Modifier, drop_housekeeping
from coldpress.recipe.document import MAX_LENGTH, parse
from coldpress.recipe.form import check_form
from coldpress.recipe.front_matter import SUFFIX, front_matter
from coldpress.recipe.grammar import Grammar, Step
from coldpress.recipe.mistake import Mistakes
from coldpress.recipe.placeholder import fill
from coldpress.recipe.problem import Problems, kind, locate, plain
from coldpress.recipe.ready import ready_recipe
from coldpress.recipe.recipe import Recipe, select
from coldpress.recipe.structure import accepted_types, build
from coldpress.spelling import near

Find = Callable[[str, str], Any]

TEXT = "<recipe>"
SUFFIXES = (".yaml", ".yml", ".json", SUFFIX)


def installed(kind: str, name: str) -> Any:
    """The installed plugin of this kind and name; a modifier that could not do what its author means is refused.

    Raises:
        PluginError: there is none, or it is broken.
    """
    found = registry.find(kind, name)
    if kind == "modifiers" and isinstance(found, type) and issubclass(found, Modifier):
        check_form(found, name)
    return found


def read_recipe(
    source: object,
    *,
    arguments: Mapping[str, object] | Iterable[str] | None = None,
    stage: str | None = None,
    find: Find = installed,
) -> Recipe:
    """Make a recipe of a modifier, a list of modifiers, a file, YAML or JSON text, or the name of a ready recipe.

    Args:
        source: a `Recipe`, a modifier, a (nested) list of modifiers, a path (YAML, JSON, or Markdown with the recipe
            as its front matter), text, or a name that an installed package offers; a file of that name wins.
        arguments: values of the `${name}` placeholders, by name or as `name=value` texts.
        stage: only the stages whose names begin so.
        find: looks up a plugin by kind and name.

    Raises:
        RecipeError: everything that is wrong with it.
    """
    if isinstance(source, str | Path):
        origin, text = _load(source)
        if origin == f"recipe {source}" and not _gives_scheme(arguments) and ready_recipe(str(source)).takes_scheme():
            raise RecipeError(
                [f"{str(source)!r} is an algorithm, which takes a scheme: --scheme W4A16 --algorithm {source}"]
            )
        return _read(text, origin, arguments=arguments, stage=stage, find=find)
    if isinstance(source, Recipe):
        recipe = source
    elif isinstance(source, Modifier | list | tuple):
        recipe = Recipe(source)
    else:
        raise RecipeError([f"a recipe is a modifier, a list of them, a file or text, not {kind(source)}"])
    if arguments:
        raise RecipeError(["arguments fill the placeholders of a file or text; this recipe is made of objects"])
    return recipe if stage is None else recipe.only(stage)


def _example(modifier: str) -> str:
    return f"`modifiers: [{modifier}: {{scheme: W4A16, ignore: [lm_head]}}]`; `coldpress recipes` lists ready ones"


def _gives_scheme(arguments: Mapping[str, object] | Iterable[str] | None) -> bool:
    return any(str(one).partition("=")[0] == "scheme" for one in arguments or ())


def _read(
    text: str,
    origin: str,
    *,
    arguments: Mapping[str, object] | Iterable[str] | None,
    stage: str | None,
    find: Find,
) -> Recipe:
    problems = Problems(origin)
    in_card = origin.lower().endswith(SUFFIX)
    text = front_matter(text, origin) if in_card else text
    grammar = Grammar(problems, has_other_keys=in_card)
    grammar.document(fill(parse(text, problems), arguments, problems))
    steps = grammar.steps
    if stage is not None and not problems.found:
        steps = _select(steps, stage, problems)
    modifiers = [_modifier(step, problems, find) for step in steps]
    problems.check()
    return Recipe(modifiers, grammar.pipeline, grammar.format, stages=[step.stage for step in steps])


def _select(steps: list[Step], stage: str, problems: Problems) -> list[Step]:
    try:
        return [steps[i] for i in select([step.stage for step in steps], stage)]
    except RecipeError as error:
        for problem in error.problems:
            problems.add(problem)
        return []


def _modifier(step: Step, problems: Problems, find: Find) -> Modifier | None:
    """The modifier of a step, or None and its problems noted."""
    try:
        cls = find("modifiers", step.name)
        if not (isinstance(cls, type) and issubclass(cls, Modifier)):
            raise BrokenPluginError(f"the plugin {step.name!r} is not a Modifier class")
    except PluginError as error:
        problems.add(str(error), node=step.key, path=step.path)
        return None
    settings = plain(step.settings)
    for name in set(HOUSEKEEPING).intersection(settings) - accepted_types(cls).keys():
        value, is_name = settings[name], name == "group"
        if not isinstance(value, str | None if is_name else int | float | None):
            wanted = "a name" if is_name else "a number"
            problems.add(f"must be {wanted}", node=step.settings.value[name], path=(*step.path, name))
    try:
        return build(cls, drop_housekeeping(cls, settings))
    except PluginError as error:
        problems.add(str(error), node=step.key, path=step.path)
    except Mistakes as error:
        for mistake in error.found:
            place = locate(step.settings, mistake.path, key=mistake.key) if mistake.path else step.key
            problems.add(mistake.message, node=place, path=(*step.path, *mistake.path))
    return None


def _load(source: str | Path) -> tuple[str, str]:
    """Where a text comes from, and the text."""
    path = Path(os.path.expanduser(source)) if isinstance(source, Path) else _path_in(source)
    name = str(source).strip()
    if name in registry.names("recipes") and (path is None or not path.is_file()):
        return f"recipe {name}", ready_recipe(name).text
    if path is None:
        return TEXT, str(source)
    try:
        if path.is_dir():
            what = "the folder of a model" if (path / "config.json").exists() else "a folder"
            place = "coldpress compress MODEL --recipe FILE"
            raise RecipeError([f"{path} cannot be read: it is {what}, and a recipe is a file: {place}"])
        if path.exists() and not path.is_file():
            raise RecipeError([f"{path} is no regular file (a pipe, a device or a socket): write the recipe to one"])
        with path.open("rb") as file:
            content = file.read(4 * MAX_LENGTH + 1)  # a character takes at most 4 bytes
        return str(path), content.decode("utf-8-sig")
    except FileNotFoundError as error:
        if name in registry.names("modifiers"):
            raise RecipeError([f"{name!r} is a modifier; a recipe is a file that has it: {_example(name)}"]) from error
        raise RecipeError([f"there is no recipe file {str(path)!r}{_neighbours(path)}"]) from error
    except UnicodeDecodeError as error:
        raise RecipeError([f"{path}: not UTF-8 text (byte {error.start})"]) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError([f"{path}: the file cannot be read: {reason}"]) from error


def _path_in(text: str) -> Path | None:
    """The path that a one-line text is; None when it is a recipe itself."""
    line = text.strip()
    if not line or "\n" in line:
        return None
    line = os.path.expanduser(line)
    try:
        if Path(line).is_file():
            return Path(line)
    except (OSError, ValueError):
        return None
    if line.lower().endswith(SUFFIXES):
        return Path(line)
    grammatical = line[0] in "{[" or ": " in line or line.endswith(":") or line.startswith("- ")
    return Path(line) if not grammatical and ("/" in line or "\\" in line) else None


def _neighbours(path: Path) -> str:
    """The end of an error message: recipe files in the same folder with near names."""
    try:
        names = [other.name for other in path.parent.iterdir() if other.suffix.lower() in SUFFIXES]
    except OSError:
        return f"; there is no folder {str(path.parent)!r} either"
    known = near(str(path), registry.names("recipes"), count=2)
    if known:
        return f"; did you mean the recipe {' or '.join(map(repr, known))}?"
    found = near(path.name, names, count=3)
    return f"; did you mean {' or '.join(repr(str(path.parent / name)) for name in found)}?" if found else ""
