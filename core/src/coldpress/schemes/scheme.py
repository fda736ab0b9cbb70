"""A scheme: which layers, and how their weights, inputs and outputs are quantized."""

from typing import Any

import torch
from attrs import Attribute, evolve, field, frozen

from coldpress.arguments.settings import short_repr
from coldpress.errors import SchemeError
from coldpress.schemes.quantization_args import QuantizationArgs, check_fields, dumped

ACTIVATION_STRATEGIES = ("token", "tensor", "group", "tensor_group", "attn_head")
TENSORS = ("weights", "input_activations", "output_activations")


def _to_targets(value: Any) -> tuple[str, ...]:
    targets = (value,) if isinstance(value, str) else value
    if not isinstance(targets, (list, tuple)) or not all(isinstance(target, str) for target in targets):
        raise SchemeError(f"targets must be a list of names, 're:' patterns or class names; got {value!r}")
    return tuple(targets)


def _to_format(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise SchemeError(f"format must be the name of a checkpoint format, got {value!r}")
    if value == "mixed-precision":
        raise SchemeError("format 'mixed-precision' belongs to a whole checkpoint; a scheme names one format or none")
    return value


@frozen(kw_only=True)
class Scheme:
    """How the layers that `targets` match are quantized; what is None stays as it is.

    Attributes:
        targets: names of layers, `re:` patterns or class names; one string is understood.
        weights: how weights are quantized.
        input_activations: how inputs are quantized.
        output_activations: how outputs are quantized.
        format: the checkpoint format of these layers; None lets the format plugin choose.

    Raises:
        SchemeError: a value is not understood, or two contradict each other.
    """

    targets: tuple[str, ...] = field(converter=_to_targets)
    weights: QuantizationArgs | None = None
    input_activations: QuantizationArgs | None = field(default=None)
    output_activations: QuantizationArgs | None = field(default=None)
    format: str | None = field(default=None, converter=_to_format)

    def __repr__(self) -> str:
        return short_repr(self)

    @input_activations.validator
    def _check_inputs(self, attribute: "Attribute[QuantizationArgs | None]", args: QuantizationArgs | None) -> None:
        if args and args.strategy not in ACTIVATION_STRATEGIES:
            raise SchemeError(
                f"input_activations: strategy {args.strategy!r} is for weights; "
                f"activations have {', '.join(ACTIVATION_STRATEGIES)}"
            )

    @input_activations.validator
    @output_activations.validator
    def _check_order(self, attribute: "Attribute[QuantizationArgs | None]", args: QuantizationArgs | None) -> None:
        if args and args.actorder:
            raise SchemeError(f"{attribute.name}: actorder is for weights; drop it")

    @classmethod
    def from_dict(cls, data: Any) -> "Scheme":
        """Read what `to_dict` or the library compressed-tensors wrote, or an object of that library.

        Raises:
            SchemeError: a field is unknown or missing, or its value is not understood; the path to it comes first.
        """
        data = dumped(data)
        check_fields(cls, data)
        if "targets" not in data:
            raise SchemeError("targets is missing: name the layers, for example ['Linear']")
        tensors = {name: _args_at(name, data[name]) for name in TENSORS if data.get(name) is not None}
        return cls(targets=data["targets"], format=data.get("format"), **tensors)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form that the library compressed-tensors writes as one of `config_groups`."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        return {
            "targets": list(self.targets),
            **{name: args.to_dict() if args else None for name, args in tensors.items()},
            "format": self.format,
        }


def with_float16_scales(scheme: Scheme) -> Scheme:
    """The scheme with scales in float16, where it leaves the dtype of those of int weights open.

    For formats that store them so: codes are then chosen for the scales that are stored.  Scales that have bits of
    their own (`scale_bits`) have no dtype.
    """
    args = scheme.weights
    if args is None or args.type != "int" or args.scale_dtype is not None or args.scale_bits is not None:
        return scheme
    return evolve(scheme, weights=evolve(args, scale_dtype=torch.float16))


def _args_at(path: str, data: Any) -> QuantizationArgs:
    if isinstance(data, QuantizationArgs):
        return data
    try:
        return QuantizationArgs.from_dict(data)
    except SchemeError as error:
        raise SchemeError(f"{path}: {error}") from error
