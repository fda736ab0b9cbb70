"""Placeholders: `${name}` in a recipe stands for an argument.

A scalar that is one placeholder takes the argument as it is, type and all; inside longer text the argument must be text
or a number. `$${` stands for a literal `${`. Nothing is evaluated.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import define, evolve, field

from coldpress.recipe.document import scalar
from coldpress.recipe.problem import UNKNOWN, Node, Path, Problems, kind, plain
from coldpress.spelling import suggest

ARGS = "args"

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_WHOLE = re.compile(rf"\$\{{({_NAME})\}}")
_PART = re.compile(rf"(?P<escape>\$\$\{{)|\$\{{(?P<name>{_NAME})\}}|(?P<broken>\$\{{)")
_CALL = re.compile(r"\s*eval\s*\(.*\)\s*", re.DOTALL)


def fill(root: Node, arguments: Mapping[str, object] | Iterable[str] | None, problems: Problems) -> Node:
    """The document with its placeholders filled and without its `args:`.

    Args:
        root: the whole document.
        arguments: values by name, or `name=value` texts; they win over the defaults in `args:`.
        problems: takes unknown placeholders, arguments that nothing uses, and calls to `eval`.
    """
    given = _given(arguments, problems)
    defaults = _defaults(root, problems)
    filling = _Filling({**defaults, **given}, problems)
    filled = filling.node(_without_args(root), ())
    names = sorted(filling.used | set(defaults))
    for name in given:
        if name not in filling.used:
            problems.add(f"argument {name!r}: no placeholder ${{{name}}} uses it{suggest(name, names)}")
    for name in defaults:
        if name not in filling.used and name not in given:
            problems.add(
                f"no placeholder ${{{name}}} uses it{suggest(name, filling.used)}",
                node=root.value[ARGS].keys[name],
                path=(ARGS, name),
            )
    return filled


def escape(text: str) -> str:
    """Text that `fill` turns back into `text`."""
    return text.replace("${", "$${")


@define
class _Filling:
    """One walk over a document.

    Attributes:
        values: arguments by name.
        problems: takes what goes wrong.
        used: names of the placeholders met.
    """

    values: Mapping[str, object]
    problems: Problems
    used: set[str] = field(factory=set)

    def node(self, node: Node, path: Path) -> Node:
        if isinstance(node.value, list):
            return evolve(node, value=[self.node(item, (*path, i)) for i, item in enumerate(node.value)])
        if isinstance(node.value, dict):
            return self.mapping(node, path)
        if isinstance(node.value, str):
            return _tree(self.text(node, path), node)
        return node

    def mapping(self, node: Node, path: Path) -> Node:
        values: dict[Any, Node] = {}
        keys: dict[Any, Node] = {}
        for name, value in node.value.items():
            key = self.node(node.keys[name], path)
            if isinstance(key.value, dict | list):
                self.problems.add("a key must be a single value", node=key, path=path)
            elif key.value in keys:
                self.problems.add(f"the key {key.value!r} is set twice", node=key, path=path)
            else:
                keys[key.value], values[key.value] = key, self.node(value, (*path, key.value))
        return Node(UNKNOWN if UNKNOWN in keys else values, node.line, node.column, keys)

    def text(self, node: Node, path: Path) -> Any:
        text: str = node.value
        if _CALL.fullmatch(text):
            message = f"nothing is evaluated in a recipe, so not {text!r} either: write the value, or a placeholder"
            self.problems.add(f"{message} such as ${{name}}", node=node, path=path)
            return UNKNOWN
        whole = _WHOLE.fullmatch(text)
        if whole:
            return self.value(whole[1], node, path)
        parts: list[Any] = []
        end = 0
        for match in _PART.finditer(text):
            parts += [text[end : match.start()], self.part(match, node, path)]
            end = match.end()
        return UNKNOWN if UNKNOWN in parts else "".join([*parts, text[end:]])

    def part(self, match: re.Match[str], node: Node, path: Path) -> Any:
        if match["escape"]:
            return "${"
        if match["broken"]:
            message = "a placeholder is ${name}, letters, digits and _ only; a literal ${ is written $${"
            self.problems.add(message, node=node, path=path)
            return UNKNOWN
        value = self.value(match["name"], node, path)
        if value is UNKNOWN or isinstance(value, str):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        message = f"${{{match['name']}}} is {kind(value)}, which does not fit inside text"
        self.problems.add(message, node=node, path=path)
        return UNKNOWN

    def value(self, name: str, node: Node, path: Path) -> Any:
        self.used.add(name)
        if name in self.values:
            return self.values[name]
        message = f"the placeholder ${{{name}}} has no value{suggest(name, self.values)}"
        self.problems.add(f"{message}; declare a default in `args:` or pass it", node=node, path=path)
        return UNKNOWN


def _given(arguments: Mapping[str, object] | Iterable[str] | None, problems: Problems) -> dict[str, object]:
    if arguments is None:
        return {}
    if isinstance(arguments, Mapping):
        return dict(arguments)
    given: dict[str, object] = {}
    for pair in [arguments] if isinstance(arguments, str) else arguments:
        name, equals, value = pair.partition("=")
        name = name.strip()
        if not equals or not re.fullmatch(_NAME, name):
            problems.add(f"argument {pair!r} is not of the form 'name=value'")
        elif name in given:
            problems.add(f"argument {name!r} is given twice")
        else:
            given[name] = scalar(value.strip())
    return given


def _defaults(root: Node, problems: Problems) -> dict[str, object]:
    declared = root.value.get(ARGS) if isinstance(root.value, dict) else None
    if declared is None or declared.value is None:
        return {}
    if not isinstance(declared.value, dict):
        problems.add(f"must map names to defaults, not be {kind(declared.value)}", node=declared, path=(ARGS,))
        return {}
    defaults: dict[str, object] = {}
    for name, value in declared.value.items():
        if not isinstance(name, str) or not re.fullmatch(_NAME, name):
            problems.add(f"{name!r} is not a name", node=declared.keys[name], path=(ARGS,))
        elif _refers(value):
            problems.add("a default cannot hold a placeholder or a call", node=value, path=(ARGS, name))
            defaults[name] = UNKNOWN
        else:
            defaults[name] = plain(value)
    return defaults


def _refers(node: Node) -> bool:
    if isinstance(node.value, list):
        return any(_refers(item) for item in node.value)
    if isinstance(node.value, dict):
        return any(_refers(item) for item in node.value.values())
    return isinstance(node.value, str) and bool("${" in node.value or _CALL.fullmatch(node.value))


def _without_args(root: Node) -> Node:
    if not isinstance(root.value, dict):
        return root
    return evolve(root, value={name: value for name, value in root.value.items() if name != ARGS})


def _tree(value: Any, place: Node) -> Node:
    """A value as nodes that stand where its placeholder stands."""
    if isinstance(value, Mapping):
        keys = {name: Node(name, place.line, place.column) for name in value}
        return Node({name: _tree(item, place) for name, item in value.items()}, place.line, place.column, keys)
    if isinstance(value, list | tuple):
        return Node([_tree(item, place) for item in value], place.line, place.column)
    return Node(value, place.line, place.column)
