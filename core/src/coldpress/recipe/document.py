"""Text to nodes: YAML or JSON, read as data only.

The text is scanned as a stream of events first, so that what is too long, too deep or tagged is refused before any
tree is built, and aliases are counted before any is followed. No constructor of the YAML library ever runs.

The Python tags that llm-compressor writes are read as the plain data that they hold: a tuple is the list of its items,
a member of an enumeration its value, a sentinel its name, and a setting with the sentinel `not_provided` is left out.
"""

import warnings
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent, NodeEvent, SequenceStartEvent
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from coldpress.errors import RecipeError
from coldpress.recipe.problem import UNKNOWN, Node, Problems

MAX_LENGTH = 2**20  # characters
MAX_NODES = 10_000  # values, aliases expanded
MAX_DEPTH = 50

_TAG = "tag:yaml.org,2002:"
_TUPLE = f"{_TAG}python/tuple"
_CALL = f"{_TAG}python/object/apply:"
_DATA_CLASSES = ("llmcompressor.", "compressed_tensors.", "torch.device")  # whose calls hold one plain value
_NOT_PROVIDED = "not_provided"


def parse(text: str, problems: Problems) -> Node:
    """The tree of a document; duplicate keys and unreadable values go to `problems` and the rest is read on.

    Raises:
        RecipeError: the text is no YAML, or is refused: too long, too deep, too many values, tags.
    """
    text = text.removeprefix("\ufeff")
    if len(text) > MAX_LENGTH:
        raise RecipeError([f"{problems.origin}: longer than {MAX_LENGTH} characters, which no recipe is"])
    try:
        _scan(text, problems)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # legal YAML
            root = YAML(typ="rt").compose(text)
    except MarkedYAMLError as error:
        raise RecipeError([_syntax(error, text, problems.origin)]) from error
    except ReaderError as error:
        before = text[: error.position]
        place = f"{before.count(chr(10)) + 1}:{error.position - before.rfind(chr(10))}"
        raise RecipeError([f"{problems.origin}:{place}: a character that YAML does not allow"]) from error
    except YAMLError as error:
        raise RecipeError([f"{problems.origin}: not valid YAML: {error}"]) from error
    if root is None:
        raise RecipeError([f"{problems.origin}:1:1: the recipe is empty"])
    size = _expanded(root, {})
    if size > MAX_NODES:
        raise RecipeError([f"{problems.origin}: {_size(size)} once aliases are expanded; at most {MAX_NODES} are read"])
    return _node(root, problems)


def scalar(text: str) -> Any:
    """What a plain YAML scalar means: `64` is an integer, `true` a boolean, and anything unclear is text."""
    tag = YAML(typ="rt").resolver.resolve(ScalarNode, text, (True, False))
    try:
        return _scalar(str(tag), text)
    except ValueError:
        return text


def _scan(text: str, problems: Problems) -> None:
    depth = count = 0
    for event in YAML(typ="rt").parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        count += isinstance(event, NodeEvent)
        place = Node(None, event.start_mark.line + 1, event.start_mark.column + 1)
        if depth > MAX_DEPTH:
            problems.add(f"nested deeper than {MAX_DEPTH} levels", node=place)
            break
        if count > MAX_NODES:
            problems.add(f"more than {MAX_NODES} values", node=place)
            break
        if getattr(event, "tag", None) is not None and not _is_plain_data(event):
            tag = str(event.tag).replace(_TAG, "!!")
            problems.add(f"the tag {tag} is refused: a recipe is data; write the plain value", node=place)
    problems.check()


def _is_plain_data(event: Any) -> bool:
    """Whether a tag says no more than what its list of plain values does."""
    tag = str(event.tag)
    called = tag.startswith(_CALL) and tag.removeprefix(_CALL).startswith(_DATA_CLASSES)
    return isinstance(event, SequenceStartEvent) and (called or tag == _TUPLE)


def _expanded(node: Any, sizes: dict[int, int]) -> int:
    """How many values a node is once its aliases are expanded; a node inside itself is infinitely many."""
    if id(node) in sizes:
        return sizes[id(node)]
    sizes[id(node)] = 2**63  # what an alias to a node that is still open sees
    if isinstance(node, MappingNode):
        size = 1 + sum(_expanded(key, sizes) + _expanded(value, sizes) for key, value in node.value)
    elif isinstance(node, SequenceNode):
        size = 1 + sum(_expanded(item, sizes) for item in node.value)
    else:
        size = 1
    sizes[id(node)] = size
    return size


def _size(size: int) -> str:
    return "endlessly many values" if size >= 2**63 else f"{size} values"


def _node(node: Any, problems: Problems) -> Node:
    line, column = node.start_mark.line + 1, node.start_mark.column + 1
    if isinstance(node, SequenceNode):
        items = [_node(item, problems) for item in node.value]
        called = str(node.tag).startswith(_CALL)
        return Node(_argument(node, items, problems) if called else items, line, column)
    if isinstance(node, MappingNode):
        return _mapping(node, problems)
    try:
        return Node(_scalar(node.tag, node.value), line, column)
    except ValueError:
        unread = Node(UNKNOWN, line, column)
        problems.add(f"{node.value[:60]!r} is not a value that a recipe can hold", node=unread)
        return unread


def _argument(node: Any, items: list[Node], problems: Problems) -> Any:
    """The plain value that a call in a Python tag was written with."""
    if items and not isinstance(items[0].value, dict | list):
        return items[0].value
    place = Node(None, node.start_mark.line + 1, node.start_mark.column + 1)
    problems.add(f"the tag {str(node.tag).replace(_TAG, '!!')} holds no plain value; write that", node=place)
    return UNKNOWN


def _is_left_out(node: Any) -> bool:
    """Whether a value is the sentinel of a setting that was not given."""
    is_sentinel = isinstance(node, SequenceNode) and str(node.tag).startswith(_CALL)
    return is_sentinel and bool(node.value) and node.value[0].value == _NOT_PROVIDED


def _mapping(node: Any, problems: Problems) -> Node:
    values: dict[Any, Node] = {}
    keys: dict[Any, Node] = {}
    merged: list[Node] = []
    for key_node, value_node in node.value:
        if _is_left_out(value_node):
            continue
        key, value = _node(key_node, problems), _node(value_node, problems)
        if key_node.tag == f"{_TAG}merge":
            merged += value.value if isinstance(value.value, list) else [value]
        elif isinstance(key.value, dict | list) or key.value is UNKNOWN:
            problems.add("a key must be a single value", node=key)
        elif key.value in keys:
            first = keys[key.value]
            problems.add(f"the key {key.value!r} is already set in line {first.line}", node=key)
        else:
            keys[key.value], values[key.value] = key, value
    for other in merged:
        if not isinstance(other.value, dict):
            problems.add("`<<` merges mappings only", node=other)
            continue
        for name, value in other.value.items():
            if name not in values:
                keys[name], values[name] = other.keys[name], value
    return Node(values, node.start_mark.line + 1, node.start_mark.column + 1, keys)


def _scalar(tag: str, text: str) -> Any:
    match tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return text.lower() in ("true", "yes", "on")
        case "int":
            digits = text.replace("_", "")
            return int(digits, 0 if digits.lstrip("+-")[:2].lower() in ("0x", "0o", "0b") else 10)
        case "float":
            digits = text.replace("_", "").lower()
            return float(digits.replace(".inf", "inf").replace(".nan", "nan"))
        case _:
            # JSON writes what lies beyond 16 bits as two halves
            return text.encode("utf-16", "surrogatepass").decode("utf-16")


def _syntax(error: MarkedYAMLError, text: str, origin: str) -> str:
    mark = error.problem_mark or error.context_mark
    place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    what = ", ".join(part for part in (error.context, error.problem) if part)
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    hint = '; quote a placeholder inside { } or [ ]: "${name}"' if "${" in line else ""
    return f"{origin}{place}: not valid YAML: {what}{hint}"
