"""AWQMapping: a pair to be smoothed, as llm-compressor's scripts write it."""

from attrs import field, frozen


@frozen
class AWQMapping:
    """A layer whose channels are divided by a scale, and those that undo it: one of `mappings`.

    Attributes:
        smooth_layer: name, `re:` pattern or class of the layer that makes the channels.
        balance_layers: of those that read them.
        activation_hook_target: understood and without effect: activations are those that the balance layers read.
    """

    smooth_layer: str
    balance_layers: list[str] = field(converter=list)
    activation_hook_target: str | None = None
