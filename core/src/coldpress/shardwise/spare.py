"""Layers that a class as a target does not mean: they are left alone unless a target names them."""

from collections.abc import Sequence

from attrs import evolve

from coldpress.modifier import Modifier
from coldpress.shardwise.outline import Outline
from coldpress.stage import matches_name


def spared(modifiers: Sequence[Modifier], outline: Outline) -> list[Modifier]:
    """The modifiers, each ignoring the spared layers that none of its targets names.

    Args:
        modifiers: of a recipe.
        outline: of the checkpoint.
    """
    return [_sparing(modifier, outline) for modifier in modifiers]


def _sparing(modifier: Modifier, outline: Outline) -> Modifier:
    patterns = modifier.patterns()
    names = [name for name in outline.spared if not any(matches_name(pattern, name) for pattern in patterns)]
    return evolve(modifier, ignore=[*modifier.ignore, *names]) if names else modifier
