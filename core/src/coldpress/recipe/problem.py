"""Problems: every mistake of one recipe, collected with its place and reported together."""

from collections.abc import Iterable
from typing import Any

from attrs import define, field, frozen

from coldpress.errors import RecipeError

Path = tuple[Any, ...]
"""The keys and list indices that lead to a value, from the top of the recipe."""


@frozen(eq=False)
class Node:
    """One value of a document and where it stands.

    Attributes:
        value: a scalar, a list of nodes, a dict from keys to nodes, or `UNKNOWN`.
        line: counted from 1.
        column: counted from 1.
        keys: for a dict, its keys as nodes.
    """

    value: Any
    line: int
    column: int
    keys: dict[Any, "Node"] = field(factory=dict)


class _Unknown:
    """A value that could not be read; its problem is already reported, and is not reported twice."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()


@define
class Problems:
    """Mistakes found so far.

    Attributes:
        origin: the file name, or `<recipe>` for text.
        found: line, column and text of each.
    """

    origin: str
    found: list[tuple[int, int, str]] = field(factory=list)

    def add(self, message: str, *, node: Node | None = None, path: Path = ()) -> None:
        """Note one problem at a node; a problem without a place, such as a wrong argument, comes first."""
        line, column = (node.line, node.column) if node else (0, 0)
        place = f":{line}:{column}" if node else ""
        where = f"{show(path)}: " if path else ""
        self.found.append((line, column, f"{self.origin}{place}: {where}{message}"))

    def check(self) -> None:
        """Raise everything that was found, in the order of the text; do nothing when nothing was.

        Raises:
            RecipeError: something was found.
        """
        if self.found:
            texts = [text for _, _, text in sorted(self.found, key=lambda problem: problem[:2])]
            raise RecipeError(dict.fromkeys(texts))  # a mistake behind two aliases is one mistake


def show(path: Path) -> str:
    """A path as people write it: `modifiers[0].GPTQModifier.dampening_frac`."""
    return "".join(f"[{key}]" if type(key) is int else f".{key}" for key in path).lstrip(".")


def locate(node: Node, path: Path, *, key: bool = False) -> Node:
    """The deepest node on a path below `node`; with `key`, the key instead of the value."""
    for depth, step in enumerate(path):
        below = node.value
        last = depth == len(path) - 1
        if isinstance(below, dict) and step in below:
            node = node.keys[step] if last and key else below[step]
        elif isinstance(below, list) and type(step) is int and step < len(below):
            node = below[step]
        else:
            break
    return node


def plain(node: Node) -> Any:
    """The value without its places."""
    if isinstance(node.value, dict):
        return {key: plain(value) for key, value in node.value.items()}
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    return node.value


def kind(value: Any) -> str:
    """What a recipe calls the type of a value: `text`, `a list`, ..."""
    names: Iterable[tuple[type, str]] = (
        (bool, "true or false"), (int, "an integer"), (float, "a number"), (str, "text"),
        (dict, "a mapping"), (list, "a list"), (tuple, "a list"), (type(None), "nothing"),
    )  # fmt: skip
    return next((name for known, name in names if isinstance(value, known)), type(value).__name__)


def quote(value: Any) -> str:
    """A value as an error message shows it; long ones are cut."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
