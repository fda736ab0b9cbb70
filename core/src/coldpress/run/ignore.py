"""What `ignore` means: a pattern that matches nothing is told, and `lm_head` is the head, whatever it is called."""

import logging
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from attrs import evolve
from torch import nn

from coldpress.arguments import DEFAULT_IGNORE
from coldpress.experts.router import router_layers
from coldpress.modifier import Modifier
from coldpress.spelling import near
from coldpress.stage import class_names, find_layers, matches
from coldpress.state import State

log = logging.getLogger(__name__)

_HEAD = "lm_head"
_BLOCK = "model.layers.0.mlp"
_CUSTOMARY = (_HEAD, f"{_BLOCK}.gate", f"{_BLOCK}.router", f"{_BLOCK}.shared_expert_gate", "block_sparse_moe.gate")
"""What a pattern would match that every recipe has, whether or not a model has such layers."""


def with_heads(modifiers: Sequence[Modifier], model: nn.Module) -> list[Modifier]:
    """The modifiers, those that ignore `lm_head` with the names that the head of this model has instead.

    That is what a recipe means by it, which is written once and used for every class: `score` of a classifier,
    `cls.predictions.decoder` of BERT.

    Args:
        modifiers: of a recipe.
        model: whose head may be called otherwise.
    """
    heads = [] if any(_is_head(name) for name, _ in model.named_modules()) else head_layers(model)
    changed = []
    for modifier in modifiers:
        meant = [pattern for pattern in modifier.ignore if matches(pattern, _HEAD, ())] if heads else []
        if meant and not any(matches(pattern, name, ()) for pattern in meant for name, _ in model.named_modules()):
            log.info("%r means %s, the head of a %s", meant[0], ", ".join(heads), type(model).__name__)
            ignore = [pattern for pattern in modifier.ignore if pattern not in meant]
            modifier = evolve(modifier, ignore=[*ignore, *heads])
        changed.append(modifier)
    return changed


def head_layers(model: Any) -> list[str]:
    """The layers that make a model's output of what its body says; none where its class is a body only."""
    find = getattr(model, "get_output_embeddings", None)
    try:
        head = find() if find is not None else None
    except (AttributeError, NotImplementedError):
        head = None
    if head is not None:
        return [name for name, module in model.named_modules() if module is head]
    body = getattr(model, "base_model", model)
    if body is model:
        return []
    inside = set(body.modules())
    return [layer.name for layer in find_layers(model.named_modules()) if layer.module not in inside]


def ignore_problems(modifiers: Sequence[Modifier], model: nn.Module, beside: Iterable[str]) -> list[str]:
    """What is wrong with patterns that match no layer, in words.

    It is wrong where the model has something that is nearly called so, or that a better pattern would match and no
    other one does.  Else it is a pattern that recipes carry from model to model, for a vision tower or routers, and
    worth a warning; the default for routers nothing.

    Args:
        modifiers: of a recipe.
        model: whose layers.
        beside: names that may be ignored too, and are no part of the model: tensors that come along.
    """
    modules = [(name, class_names(module)) for name, module in model.named_modules() if _has_weights(module)]
    modules += [(name, ()) for name in beside]
    problems = []
    for modifier in modifiers:
        for pattern in modifier.ignore:
            if any(matches(pattern, name, classes) for name, classes in modules):
                continue
            customary = any(matches(pattern, name, ()) for name in _CUSTOMARY)
            hint = "" if customary else _hint(pattern, model, modifier.ignore)
            if hint:
                problems.append(f"{type(modifier).__name__}: ignore has {pattern!r}, which matches no layer{hint}")
            elif pattern not in DEFAULT_IGNORE[1:]:
                log.warning("ignore: %r matches no layer of a %s", pattern, type(model).__name__)
    return problems


def warn_of_routers(state: State) -> None:
    """Name routers that will be quantized: engines build them without quantization."""
    quantized = [name for name in router_layers(state.model) if name in state.plan]
    if quantized:
        log.warning(
            "%d layers that route tokens to experts will be quantized, the first is %s; engines have no place for a "
            "quantized router: put %r into ignore",
            *(len(quantized), quantized[0], DEFAULT_IGNORE[1]),
        )


def _hint(pattern: str, model: nn.Module, ignore: Sequence[str]) -> str:
    """The end of a message: what the pattern must be meant for; nothing where the model has nothing of the kind, or
    other patterns ignore it.
    """
    found = {layer.name: class_names(layer.module) for layer in find_layers(model.named_modules())}
    layers = [name for name, classes in found.items() if not any(matches(other, name, classes) for other in ignore)]
    named = [name for name, module in model.named_modules() if name and matches(pattern, name, class_names(module))]
    inside = [layer for layer in layers if any(layer.startswith(f"{name}.") for name in named)]
    if inside:
        return f": it holds layers and is none; {f're:{named[0]}.*'!r} matches {inside[0]!r} and what is beside it"
    word = pattern.removeprefix("re:").strip("^$.*\\")
    holding = [layer for layer in layers if word and word in layer]
    if holding:
        return f": a pattern is matched from the start of a name; {f're:.*{word}.*'!r} matches {holding[0]!r}"
    if named or (word and any(word in name for name in found)):
        return ""
    examples = _examples(pattern, word, model, list(found))
    return f"; the model has, for example, {', '.join(map(repr, examples))}" if examples else ""


def _examples(pattern: str, word: str, model: nn.Module, layers: Sequence[str]) -> list[str]:
    """Layers, or classes of such, whose names look as if they were meant."""
    kinds = {type(layer.module).__name__ for layer in find_layers(model.named_modules())}
    parts = kinds | {"weight", "bias"} | {part for name, _ in model.named_modules() for part in name.split(".")}
    words = re.findall(r"\w+", word)
    slips = {own: near_by[0] for own in words if own not in parts and (near_by := _misspelt(own, parts))}
    corrected = re.sub(r"\w+", lambda found: slips.get(found[0], found[0]), pattern)
    if pattern.startswith("re:") and slips and not any(matches(corrected, name, ()) for name in layers):
        return []  # of another model, where a part has a name that is like one of this
    meant = words[-1:] if words and parts.issuperset(words) else list(slips.values())  # parts of names, wrongly joined
    if not meant:
        return []
    found = [name for name in (*layers, *sorted(kinds)) if meant[0] in name.split(".")][:3]
    return found or near(word, layers, count=3)


def _misspelt(word: str, known: Iterable[str]) -> list[str]:
    by_case = {name.lower(): name for name in known}
    return [by_case[found] for found in get_close_matches(word.lower(), by_case, cutoff=0.8)]


def _is_head(name: str) -> bool:
    return name.rpartition(".")[2] == _HEAD


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))
