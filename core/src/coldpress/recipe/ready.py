"""Recipes by name: what a package offers under `coldpress.recipes`, to be taken as it is.

coldpress compress MODEL --recipe gptq-w4a16                   a whole recipe
coldpress compress MODEL --scheme W3A16 --algorithm gptq       one that takes a scheme: an algorithm
"""

from attrs import field, frozen

from coldpress import registry
from coldpress.errors import BrokenPluginError

_SCHEME = "${scheme}"


@frozen(kw_only=True)
class Measured:
    """What a recipe gave where it was measured.

    Attributes:
        kl: mean KL divergence to the original, nats a token.
        perplexity: of the compressed model.
        original_perplexity: of the original on the same text.
        source: file of measured results and the line in it.
    """

    kl: float
    perplexity: float
    original_perplexity: float
    source: str


@frozen(kw_only=True)
class ReadyRecipe:
    """A recipe that is taken by name.

    Attributes:
        title: what it does, in one line.
        text: YAML, with placeholders and their defaults as in any recipe; one with `${scheme}`, `${group_size}` and
            `${ignore}` and no defaults is an algorithm, which takes a scheme.
        reads_data: whether it needs calibration data.
        measured: what it gave; None where nothing was measured.
    """

    title: str
    text: str
    reads_data: bool = False
    measured: Measured | None = field(default=None)

    def takes_scheme(self) -> bool:
        """Whether it is an algorithm: `--algorithm NAME` beside a scheme."""
        return _SCHEME in self.text


def ready_recipe(name: str) -> ReadyRecipe:
    """The recipe of a name.

    Raises:
        UnknownPluginError: no installed package offers it; near names are suggested.
        BrokenPluginError: what is offered is no `ReadyRecipe`.
    """
    found = registry.find("recipes", name)
    if not isinstance(found, ReadyRecipe):
        raise BrokenPluginError(f"the recipe {name!r} is a {type(found).__name__}, not a coldpress.plugin.ReadyRecipe")
    return found


def ready_recipes() -> dict[str, ReadyRecipe]:
    """Every recipe that installed packages offer, by name; broken ones are left to `coldpress plugins`."""
    found = {}
    for plugin in registry.available("recipes"):
        try:
            found[plugin.name] = ready_recipe(plugin.name)
        except BrokenPluginError:
            continue
    return found
