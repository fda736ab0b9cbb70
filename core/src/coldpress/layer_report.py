"""LayerReport: what became of one layer."""

from collections.abc import Mapping
from typing import Any, Literal

from attrs import asdict, define, field, frozen

Status = Literal["quantized", "changed", "fallback", "untouched"]


@frozen
class Note:
    """What is meant by one of the notes on layers.

    Attributes:
        key: of the note, in `LayerReport.notes`.
        unit: of its value; empty for words, ratios and what is true or not.
        meaning: in a line.
    """

    key: str
    unit: str
    meaning: str


CORE_NOTES = (
    Note("tokens", "tokens", "of the calibration data that reached the layer"),
    Note("few_tokens", "", "whether an expert's layer saw fewer than moe_min_tokens, or than it has input channels"),
    Note("dampening", "of the mean diagonal", "what was added to the diagonal of the Gram matrix of its inputs"),
    Note("output_error", "squared, a token", "error of its outputs on the calibration data"),
    Note("rounding_ratio", "", "that error over the one of rounding to nearest with the same scales; a gain below 1"),
    Note("quantized_before", "", "the scheme that the layer came with, and which the run replaced"),
    Note("untied_from", "", "the module that it shared its weight with until the run gave it one of its own"),
    Note("untied_bytes", "bytes", "what that adds to the model before anything is compressed"),
    Note("remarks", "", "why a modifier left a layer alone that another one changed"),
)
"""Notes of core itself, and of functions of core that modifiers call."""


@define
class LayerReport:
    """What became of one layer.

    Attributes:
        name: from the root of the model.
        kind: class of the module.
        shape: of the weight, (O, I).
        status: quantized, changed (pruned, smoothed), fallback (not as asked, see `reason`) or untouched.
        reason: why it is untouched or fell back.
        scheme: in words, e.g. `int4 group 64`.
        weight_error: size of the change over the size of the weight (Frobenius norms); None when not measured.
        sparsity: share of weights that are zero; None when not measured.
        seconds: spent on this layer.
        notes: what modifiers add, under the keys that they declare (`Modifier.notes`).
        histograms: of its weights and inputs, `weights` and `inputs`; of the layers that lose most only.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    status: Status = "untouched"
    reason: str | None = None
    scheme: str | None = None
    weight_error: float | None = None
    sparsity: float | None = None
    seconds: float = 0.0
    notes: dict[str, Any] = field(factory=dict)
    histograms: dict[str, Any] = field(factory=dict)

    def become(self, status: Status, *, reason: str | None = None, scheme: str | None = None) -> None:
        """Take a status, and the scheme if one is given; the reason of an earlier status becomes a remark."""
        if self.reason is not None:
            self.remark(self.reason)
        self.status, self.reason, self.scheme = status, reason, scheme or self.scheme

    def remark(self, reason: str) -> None:
        """Note why some modifier left a layer alone that another one changed."""
        remarks = self.notes.setdefault("remarks", [])
        if reason not in remarks:
            remarks.append(reason)

    def to_dict(self) -> dict[str, Any]:
        """The line as `report.json` has it."""
        content = asdict(self)
        if not self.histograms:
            del content["histograms"]
        return content

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LayerReport":
        """The inverse of `to_dict`.

        Raises:
            TypeError: a field is missing or of another type.
        """
        line = cls(**{**data, "shape": tuple(data["shape"])})
        texts = (line.name, line.kind, line.status, line.reason or "", line.scheme or "")
        numbers = (*line.shape, line.seconds, line.weight_error or 0, line.sparsity or 0)
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(x, int | float) for x in numbers):
            raise TypeError(f"the line of {line.name!r} in the report has a field of another type")
        if not isinstance(line.notes, dict) or not isinstance(line.histograms, dict):
            raise TypeError(f"the notes or histograms of {line.name!r} are no table")
        return line
