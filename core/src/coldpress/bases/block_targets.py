"""Targets that may name a block, and mean the linear layers inside of it: what modifiers that prune take."""

import re
from collections.abc import Iterable

from attrs import field, frozen

from coldpress.modifier import Modifier, names
from coldpress.stage import Layer, Stage, class_names, matches

ALL_PRUNABLE = "__ALL_PRUNABLE__"
"""An old name of llm-compressor for all linear layers."""


def _to_targets(value: str | Iterable[str]) -> list[str]:
    return ["Linear" if name == ALL_PRUNABLE else name for name in names(value)]


@frozen(kw_only=True, eq=False)
class BlockTargets(Modifier):
    """Base of modifiers whose targets may also name modules that hold layers, or the weights of layers.

    Attributes:
        targets: layers to change: exact names, `re:` patterns, or class names; of the layers, of their weights
            (`re:.*q_proj.weight`), or of modules, such as blocks, all of whose linear layers are meant.
            `__ALL_PRUNABLE__` is `Linear`.
    """

    targets: list[str] = field(factory=lambda: ["Linear"], converter=_to_targets)

    def layers(self, stage: Stage) -> list[Layer]:
        """The layers of a stage that targets mean, in model order."""
        meant = {layer.name for pattern in self.targets for layer in self.matching(pattern, stage)}
        return [layer for layer in stage.every_layer if layer.name in meant and not layer.matches(self.ignore)]

    def matching(self, pattern: str, stage: Stage) -> list[Layer]:
        """The layers of a stage that one target means."""
        return [layer for layer in stage.every_layer if _homes(pattern, layer, stage)]

    def by_target(self, stage: Stage) -> dict[str, list[Layer]]:
        """The layers of a stage by the name of the outermost module that a target matches, in model order."""
        found: dict[str, list[Layer]] = {}
        for layer in self.layers(stage):
            homes = [home for pattern in self.targets for home in _homes(pattern, layer, stage)]
            found.setdefault(min(homes, key=len), []).append(layer)
        return found


def _homes(pattern: str, layer: Layer, stage: Stage) -> list[str]:
    """The names of a layer, and of the modules around it, that a target matches."""
    own = layer.matches([pattern]) or _names_weight(pattern, layer.name)
    if "Linear" not in layer.classes:
        return [layer.name] if own else []
    parts = layer.name.split(".")
    around = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    found = [name for name in around if matches(pattern, name, _classes(name, stage))]
    return [*found, *([layer.name] if own else [])]


def _names_weight(pattern: str, name: str) -> bool:
    weight = f"{name}.weight"
    return re.match(pattern[3:], weight) is not None if pattern.startswith("re:") else pattern == weight


def _classes(name: str, stage: Stage) -> tuple[str, ...]:
    """What a module of a stage may be called; nothing for one outside of it."""
    module = stage.modules.get(name)
    return () if module is None else class_names(module)
