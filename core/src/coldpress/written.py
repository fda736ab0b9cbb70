"""Written: which weights are those that were last checked, reported and encoded."""

from attrs import define, field

from coldpress.numerics import bit_sum, version
from coldpress.stage import Layer


@define(eq=False)
class Written:
    """What the weights of layers were when they were last looked at.

    Attributes:
        versions: layer name to the version of its weight.
        encoded: layer name to version and `bit_sum` of the weight that its codes stand for.
    """

    versions: dict[str, int] = field(factory=dict)
    encoded: dict[str, tuple[int, int]] = field(factory=dict)

    def note(self, layer: Layer) -> None:
        """The weight was checked and reported as it is now."""
        self.versions[layer.name] = version(layer.weight)

    def note_codes(self, layer: Layer) -> None:
        """The layer has codes that stand for the weight as it is now."""
        self.encoded[layer.name] = version(layer.weight), bit_sum(layer.weight)

    def forget_codes(self, layer: Layer) -> None:
        """The layer has no codes any more."""
        self.encoded.pop(layer.name, None)

    def is_current(self, layer: Layer) -> bool:
        """Whether the weight is what it was; where there are codes, a change by way of `data` is seen too."""
        if layer.name in self.encoded:
            return self.encoded[layer.name] == (version(layer.weight), bit_sum(layer.weight))
        return self.versions.get(layer.name) == version(layer.weight)
