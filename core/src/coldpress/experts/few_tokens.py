"""Few tokens: when the layer of an expert has seen too few of them, and what becomes of it."""

from attrs import frozen


@frozen
class FewTokens:
    """What few tokens are, and what is done about them.

    Attributes:
        least: tokens that are not few; None for as many as a layer has input channels.
        treatment: `note` says so in the report; `round` forgets what was seen of the layer's inputs, so that every
            method does what it does where no token came; `refuse` stops, because more data are needed.
    """

    least: int | None = None
    treatment: str = "note"
