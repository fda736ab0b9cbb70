"""From a scheme by name to a recipe: the algorithm that is named, or the one that suits the scheme."""

from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from coldpress import registry
from coldpress.arguments import DEFAULT_ALGORITHM, DEFAULT_IGNORE, FEW_BITS, FEW_BITS_ALGORITHM, QUALITIES
from coldpress.errors import ArgumentError, UnknownPluginError
from coldpress.recipe import Recipe, read_recipe, ready_recipe, ready_recipes
from coldpress.schemes import preset

_OF_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)


@frozen
class Chosen:
    """A recipe, and why it is this one.

    Attributes:
        recipe: to be run.
        algorithm: its name.
        why: what to tell, where the user named none; None where one was named.
    """

    recipe: Recipe
    algorithm: str
    why: str | None


def recipe_for(
    scheme: str,
    *,
    model: str,
    algorithm: str | None = None,
    group_size: int | None = None,
    ignore: Sequence[str] | None = None,
) -> Chosen:
    """The recipe that brings a model into a scheme.

    Args:
        scheme: name of a preset.
        model: as the user names it; one without a tokenizer is not calibrated unasked.
        algorithm: name of a ready recipe that takes a scheme; None for the one that suits the scheme: rounding for 8
            bits, what minimizes the error of outputs for 4 bits and fewer.
        group_size: columns that share a scale; None for the preset's.
        ignore: layers to leave alone; None for the output head and routers.

    Raises:
        SchemeError: there is no such preset.
        ArgumentError: the algorithm takes no scheme.
        UnknownPluginError: it is not installed.
    """
    why = None
    if algorithm is None:
        algorithm, why = _suiting(scheme, model)
    ready = _algorithm(algorithm)
    values = {"scheme": scheme, "group_size": group_size, "ignore": list(ignore or DEFAULT_IGNORE)}
    return Chosen(read_recipe(ready, arguments=values), algorithm, why)


def recipe_for_size(
    bits: float | None,
    size: str | None,
    *,
    quality: str | None = None,
    group_size: int | None = None,
    ignore: Sequence[str] | None = None,
) -> Chosen:
    """The recipe that gives each layer its bits, so that a model has so many on average, or so many bytes.

    Args:
        bits: of a weight, on average over the layers that are quantized; None where a size is given.
        size: of the whole checkpoint, such as "3GB".
        quality: one of `QUALITIES`; None for balanced.
        group_size: columns that share a scale; None for the recipe's.
        ignore: layers to leave alone; None for the output head and routers.

    Raises:
        ArgumentError: there is no such quality.
        UnknownPluginError: the recipe is not installed.
    """
    name = quality_named(quality or "balanced")[1]
    try:
        ready = ready_recipe(name)
    except UnknownPluginError as error:
        raise UnknownPluginError(f"{error}; --bits and --size need: pip install 'coldpress[autobits,gptq]'") from error
    values = {"target_bits": bits, "target_size": size, "group_size": group_size, "ignore": ignore and list(ignore)}
    given = {key: value for key, value in values.items() if value is not None or key in ("target_bits", "target_size")}
    return Chosen(read_recipe(ready.text, arguments=given), name, None)


def quality_named(name: str) -> tuple[str, str]:
    """Ready recipes of a quality: for a scheme, and for a size.

    Raises:
        ArgumentError: there is no such quality.
    """
    if name not in QUALITIES:
        raise ArgumentError(f"--quality {name!r} is none of {', '.join(QUALITIES)}")
    return QUALITIES[name]


def _suiting(scheme: str, model: str) -> tuple[str, str]:
    """The algorithm for a scheme, and the line that says so."""
    weights = preset(scheme).weights
    bits = 16 if weights is None else weights.num_bits
    other = "--algorithm chooses another, `coldpress recipes` lists them"
    if bits > FEW_BITS:
        return DEFAULT_ALGORITHM, f"{DEFAULT_ALGORITHM}, which suits {bits} bits and reads no data; {other}"
    if FEW_BITS_ALGORITHM not in registry.names("recipes"):
        need = f"{FEW_BITS_ALGORITHM} would lose less: pip install 'coldpress[{FEW_BITS_ALGORITHM}]'"
        return DEFAULT_ALGORITHM, f"{DEFAULT_ALGORITHM}; {need}"
    folder = Path(model).expanduser()
    if folder.is_dir() and not any((folder / name).is_file() for name in _OF_TOKENIZER):
        reason = f"there is no tokenizer beside the model, which {FEW_BITS_ALGORITHM} would read data with"
        return DEFAULT_ALGORITHM, f"{DEFAULT_ALGORITHM}: {reason}; {other}"
    easier = f"--algorithm {DEFAULT_ALGORITHM} is faster, reads none and loses more"
    return FEW_BITS_ALGORITHM, f"{FEW_BITS_ALGORITHM}, which suits {bits} bits and reads calibration data; {easier}"


def _algorithm(name: str) -> str:
    """The text of an algorithm.

    Raises:
        ArgumentError: it is a whole recipe.
        UnknownPluginError: it is not installed.
    """
    try:
        found = ready_recipe(name)
    except UnknownPluginError as error:
        raise UnknownPluginError(f"--algorithm: {error}") from error
    if not found.takes_scheme():
        known = ", ".join(sorted(key for key, one in ready_recipes().items() if one.takes_scheme()))
        raise ArgumentError(
            f"--algorithm: {name!r} is a whole recipe, with a scheme of its own: pass --recipe {name}; algorithms that "
            f"take a scheme are {known}"
        )
    return found.text
