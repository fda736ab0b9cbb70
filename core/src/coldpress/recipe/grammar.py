"""Grammar: nodes to steps; which modifiers a document names, with which settings, in which order.

    args: {group_size: 64}                     another_stage:
    pipeline: data_free                          some_modifiers:
    format: compressed-tensors                     QuantizationModifier: {scheme: W8A8}
    modifiers:                                   more_modifiers:
      - QuantizationModifier: {scheme: W4A16}      - FirstModifier: {}
      - OtherModifier                              - FirstModifier: {}

Left ours, right the grammar of llm-compressor. What has neither shape is an error and never nothing; only in the front
matter of a Markdown file other keys are the business of others.
"""

import logging
import re
from difflib import get_close_matches
from typing import Any

from attrs import define, field, frozen

from coldpress.recipe.problem import UNKNOWN, Node, Path, Problems, kind, plain
from coldpress.recipe.recipe import SEVERAL, Choice
from coldpress.spelling import suggest

log = logging.getLogger(__name__)

KEYS = ("args", "pipeline", "format", "modifiers")
STAGE = "stage"

_STAGE_NAME = re.compile(r".*_stage(_\d+)?")  # merged recipes number their stages
_GROUP_END = "_modifiers"
_RUN_TYPE, _RUN_TYPES = "run_type", ("oneshot", "train")  # of recipes until llm-compressor 0.5
_MISSPELT = 0.85  # how near a key of a model card is to ours where it must be a slip; `pipeline_tag` has 0.8
_CLASS = re.compile(r"[A-Z][A-Za-z0-9_]*")


@frozen(eq=False)
class Step:
    """One modifier of a document, not yet looked up.

    Attributes:
        name: what the registry knows it by.
        key: where the name stands.
        settings: a mapping.
        path: where the settings are, from the top of the document.
        stage: the name of its stage; None outside of stages.
    """

    name: str
    key: Node
    settings: Node
    path: Path
    stage: str | None


@define
class Grammar:
    """One walk over a document, in its order.

    Attributes:
        problems: takes what has no meaning.
        has_other_keys: top-level keys that no recipe has are left alone, as in the front matter of a model card.
        steps: the modifiers met so far.
        pipeline: the choice, if one was met.
        format: the choice, if one was met.
    """

    problems: Problems
    has_other_keys: bool = False
    steps: list[Step] = field(factory=list)
    pipeline: Choice | None = None
    format: Choice | None = None
    _is_empty_on_purpose: bool = False

    def document(self, root: Node) -> None:
        """Read a whole document: a mapping, or only the list of its modifiers."""
        if isinstance(root.value, list):
            self._list(root, (), None)
        elif isinstance(root.value, dict):
            for name, value in root.value.items():
                self._top(name, root.keys[name], value)
        elif root.value is not UNKNOWN:
            message = f"a recipe is a mapping or a list of modifiers, not {kind(root.value)}"
            self.problems.add(message if root.value is not None else "the recipe is empty", node=root)
        if not (self.steps or self._is_empty_on_purpose or self.problems.found):
            self.problems.add("the recipe has no modifiers", node=root)

    def _top(self, name: Any, key: Node, value: Node) -> None:
        path = (name,)
        if name == "pipeline":
            self.pipeline = self._choice(value, path)
        elif name == "format":
            self.format = self._several(value, path) if isinstance(value.value, list) else self._choice(value, path)
        elif name == "modifiers" or _ends(name, _GROUP_END):
            self._group(value, path, None)
        elif _is_stage_name(name) or (_is_stage(value) and not suggest(str(name), KEYS)):
            self._stage(value, path)
        elif _is_class(name):
            self._step(key, value, path, None)
        elif _is_group(value) and not suggest(str(name), KEYS):
            self._group(value, path, None)
        elif not self.has_other_keys or get_close_matches(str(name), KEYS, cutoff=_MISSPELT):
            message = f"unknown key{suggest(str(name), KEYS)}; a recipe has {', '.join(KEYS)}, or stages: <name>_stage"
            self.problems.add(message, node=key, path=path)

    def _several(self, node: Node, path: Path) -> Choice | None:
        """A list of formats, each by name, alone or with its settings."""
        found = [self._choice(one, (*path, i)) for i, one in enumerate(node.value)]
        choices = [{one.name: one.settings} if one.settings else one.name for one in found if one is not None]
        if len(choices) < len(found) or not choices:
            self.problems.add("format is a name, or a list of names", node=node, path=path)
            return None
        settings: dict[str, Any] = {"formats": choices}
        return Choice(SEVERAL, settings)

    def _choice(self, node: Node, path: Path) -> Choice | None:
        """A plugin by name, alone or with its settings."""
        if not isinstance(node.value, dict):
            name = self._text(node, path)
            return Choice(name) if name else None
        if len(node.value) != 1:
            self.problems.add(f"name one {path[0]}: `{path[0]}: {{name: {{setting: value}}}}`", node=node, path=path)
            return None
        ((name, settings),) = node.value.items()
        values = plain(settings)
        if settings.value is UNKNOWN:
            return None
        if not isinstance(values or {}, dict) or not all(isinstance(key, str) for key in values or {}):
            self.problems.add("settings must be a mapping with names for keys", node=settings, path=(*path, name))
            return None
        return Choice(str(name), values or {})

    def _stage(self, node: Node, path: Path) -> None:
        stage = str(path[-1])
        if not isinstance(node.value, dict):
            self._expected(f"a stage holds groups named <name>{_GROUP_END}", node, path)
            return
        self._is_empty_on_purpose |= not node.value
        for name, value in node.value.items():
            below = (*path, name)
            if name == _RUN_TYPE:
                self._run_type(value, below)
            elif name == "modifiers" or _ends(name, _GROUP_END) or (_is_group(value) and not _is_class(name)):
                self._group(value, below, stage)
            elif _is_class(name):
                self._step(node.keys[name], value, below, stage)
            else:
                message = f"unknown key; a stage holds groups named <name>{_GROUP_END}"
                self.problems.add(message, node=node.keys[name], path=below)

    def _run_type(self, node: Node, path: Path) -> None:
        if node.value not in _RUN_TYPES:
            self._expected(f"must be {' or '.join(_RUN_TYPES)}", node, path)
        elif node.value != _RUN_TYPES[0]:
            log.warning("%s: nothing is trained; what its modifiers do at the end of training is done once", path[0])

    def _group(self, node: Node, path: Path, stage: str | None) -> None:
        if isinstance(node.value, list):
            self._list(node, path, stage)
        elif isinstance(node.value, dict):
            self._is_empty_on_purpose |= not node.value
            for name, value in node.value.items():
                self._step(node.keys[name], value, (*path, name), stage)
        else:
            self._expected("expected modifiers: a list, or a mapping of names to settings", node, path)

    def _list(self, node: Node, path: Path, stage: str | None) -> None:
        self._is_empty_on_purpose |= not node.value
        for i, item in enumerate(node.value):
            below = (*path, i)
            if isinstance(item.value, str):
                self._step(item, Node({}, item.line, item.column), (*below, item.value), stage)
            elif isinstance(item.value, dict):
                self._item(item, below, stage)
            else:
                self._expected("expected a modifier, as `Name` or `Name: {setting: value}`", item, below)

    def _item(self, node: Node, path: Path, stage: str | None) -> None:
        """One modifier of a list; `stage:` may stand beside its name."""
        own = node.value.get(STAGE)
        if own is not None:
            stage = self._text(own, (*path, STAGE))
        names = [name for name in node.value if name != STAGE]
        if len(names) != 1:
            first = names[0] if names else None
            lost = first is not None and node.value[first].value is None
            hint = f"; indent the settings of {first} further than its name" if lost else ""
            self.problems.add(f"expected one modifier, got {len(names)} keys{hint}", node=node, path=path)
            return
        self._step(node.keys[names[0]], node.value[names[0]], (*path, names[0]), stage)

    def _step(self, key: Node, settings: Node, path: Path, stage: str | None) -> None:
        if not isinstance(key.value, str):
            self.problems.add(f"a modifier is named by text, not by {kind(key.value)}", node=key, path=path)
        elif settings.value is None:
            self.steps.append(Step(key.value, key, Node({}, key.line, key.column), path, stage))
        elif isinstance(settings.value, dict):
            self.steps.append(Step(key.value, key, settings, path, stage))
        else:
            self._expected("settings must be a mapping", settings, path)

    def _text(self, node: Node, path: Path) -> str | None:
        if isinstance(node.value, str) and node.value:
            return node.value
        self._expected("must be a name", node, path)
        return None

    def _expected(self, message: str, node: Node, path: Path) -> None:
        if node.value is not UNKNOWN:
            self.problems.add(f"{message}; got {kind(node.value)}", node=node, path=path)


def _ends(name: Any, end: str) -> bool:
    return isinstance(name, str) and name.endswith(end)


def _is_stage_name(name: Any) -> bool:
    return isinstance(name, str) and bool(_STAGE_NAME.fullmatch(name))


def _is_class(name: Any) -> bool:
    return isinstance(name, str) and bool(_CLASS.fullmatch(name)) and not _is_stage_name(name)


def _is_group(node: Node) -> bool:
    """Whether this can only be modifiers: every name in it is that of a class."""
    if isinstance(node.value, list):
        names = [item.value if isinstance(item.value, str) else None for item in node.value]
        maps = [item.value for item in node.value if isinstance(item.value, dict)]
        found = [name for name in names if name is not None] + [name for keys in maps for name in keys if name != STAGE]
        return bool(found) and all(_is_class(name) for name in found)
    return isinstance(node.value, dict) and bool(node.value) and all(_is_class(name) for name in node.value)


def _is_stage(node: Node) -> bool:
    """Whether this can only be a stage: every key in it names a group, or holds one."""
    if not isinstance(node.value, dict) or not node.value:
        return False
    inside = {key: value for key, value in node.value.items() if key != _RUN_TYPE}
    return all(_ends(key, _GROUP_END) or (_is_group(value) and not _is_class(key)) for key, value in inside.items())
