"""gptq: the checkpoint format that GPTQ's tools began with, and that vLLM, transformers and GPTQModel read."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from attrs import Attribute, evolve, field, frozen
from torch import Tensor, zeros_like

from coldpress.numerics import scale_shape
from coldpress.plugin import (
    Attached,
    CheckpointError,
    Format,
    QuantizationArgs,
    Quantized,
    Scheme,
    SchemeError,
    SchemeLookup,
    Stored,
    with_float16_scales,
)
from coldpress_gptq_format.algorithm import Packed, pack, unpack
from coldpress_gptq_format.config import V1, V2, VERSIONS, read_config, write_config

BITS = (2, 3, 4, 8)
"""What its readers have kernels for."""

_WORD = 32  # bits


@frozen(kw_only=True)
class GPTQFormat(Format):
    """Integer weights with scales in float16, packed into words of 32 bits; inputs are left alone.

    Attributes:
        quantization_format: `gptq`, version 1, stores zero points less 1, and so cannot store the smallest;
            `gptq_v2` stores them as they are.  Left out, it is version 1 where all layers are symmetric, else 2.
    """

    fuses_layers: ClassVar[bool] = True

    quantization_format: str | None = field(default=None)

    @quantization_format.validator
    def _check_version(self, attribute: "Attribute[str | None]", value: str | None) -> None:
        if value is not None and value not in VERSIONS:
            raise SchemeError(f"quantization_format is {value!r}; there are {' and '.join(VERSIONS)}, or leave it out")

    def complete(self, schemes: Mapping[str, Scheme], shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, Scheme]:
        """Scales in float16, and one version for all layers."""
        version = self._version(schemes.values())
        return {name: evolve(with_float16_scales(scheme), format=version) for name, scheme in schemes.items()}

    def check(self, scheme: Scheme, name: str, shape: tuple[int, int]) -> None:
        """Refuse what GPTQ's readers cannot read: other numbers, inputs, and widths that do not fill words."""
        reason = _obstacle(scheme, shape, self._version([scheme]))
        if reason:
            raise SchemeError(f"{name}, {shape[0]} x {shape[1]}, cannot be written as gptq: {reason}")

    def tensors(self, quantized: Quantized) -> dict[str, Tensor]:
        """`qweight`, `qzeros`, `scales` and `g_idx`."""
        args = quantized.scheme.weights
        assert args is not None, "refused by `check`"
        assert quantized.codes is not None
        assert quantized.scale is not None
        points = zeros_like(quantized.scale, dtype=torch.int8) if args.symmetric else quantized.zero_point
        assert points is not None
        offset = int(self._version([quantized.scheme]) == V1)
        try:
            packed = pack(quantized.codes, quantized.scale, points, num_bits=args.num_bits, offset=offset)
        except ValueError as error:
            raise CheckpointError(f"{error}; choose quantization_format: {V2}, or a symmetric scheme") from error
        return {name: tensor for name, tensor in packed._asdict().items() if tensor is not None}

    def config(
        self, schemes: Mapping[str, Scheme], ignore: Sequence[str], attachments: Sequence[Attached] = ()
    ) -> dict[str, Any] | None:
        """The table of `config.json`; None when nothing is quantized."""
        return write_config(schemes, ignore, self._version(schemes.values())) if schemes else None

    def read(self, config: Mapping[str, Any]) -> SchemeLookup:
        """Read a table of this format, ours or another tool's."""
        return read_config(config)

    def restore(self, tensors: Mapping[str, Tensor], scheme: Scheme) -> Quantized:
        """Codes, scales and zero points of one layer."""
        args, packed = scheme.weights, _packed(tensors)
        assert args is not None
        try:
            offset = int(self._version([scheme]) == V1)
            codes, scale, points = unpack(packed, num_bits=args.num_bits, offset=offset)
            if tuple(scale.shape) != scale_shape(tuple(codes.shape), args):
                raise ValueError(f"scales are {tuple(scale.shape)}, and groups {args.group_size or 'of a whole row'}")
        except (ValueError, SchemeError) as error:
            raise CheckpointError(f"a layer of {args.num_bits} bits cannot be read: {error}") from error
        if args.symmetric and points.any():
            raise CheckpointError("a layer has zero points, and the configuration says that it is symmetric")
        return Quantized(scheme, codes=codes, scale=scale, zero_point=points)

    def shape(self, stored: Mapping[str, Stored], scheme: Scheme) -> tuple[int, int] | None:
        """Of `qweight`, turned round and unpacked."""
        if "qweight" not in stored or scheme.weights is None:
            return None
        words, rows = stored["qweight"].shape
        return rows, words * _WORD // scheme.weights.num_bits

    def count_weights(self, stored: Mapping[str, Stored], scheme: Scheme) -> Mapping[str, int]:
        """The codes of `qweight`."""
        if "qweight" not in stored or scheme.weights is None:
            return {}
        counts = {suffix: 0 for suffix in Packed._fields if suffix in stored}
        return {**counts, "qweight": stored["qweight"].nbytes() * 8 // scheme.weights.num_bits}

    def _version(self, schemes: Any) -> str:
        """How zero points of layers with these schemes are stored."""
        schemes = list(schemes)
        if self.quantization_format is not None:
            return self.quantization_format
        configured = next((scheme.format for scheme in schemes if scheme.format in VERSIONS), None)
        plain = all(scheme.weights is None or scheme.weights.symmetric for scheme in schemes)
        return configured or (V1 if plain else V2)


def _obstacle(scheme: Scheme, shape: tuple[int, int], version: str) -> str | None:
    args, (rows, width) = scheme.weights, shape
    if args is None or scheme.input_activations is not None or scheme.output_activations is not None:
        return "this format quantizes weights, and leaves inputs as they are; choose a scheme such as W4A16"
    if args.type != "int" or args.num_bits not in BITS:
        known = ", ".join(map(str, BITS))
        return f"its codes are integers of {known} bits, not {args.type}{args.num_bits}"
    if args.strategy not in ("group", "channel"):
        return f"scales are those of groups or rows, not of strategy {args.strategy!r}"
    if args.scale_bits is not None:
        return f"scales of {args.scale_bits} bits, as in Q4_K, are for the format gguf; choose W4A16"
    if args.scale_dtype != torch.float16:
        return f"scales are float16, not {args.scale_dtype}; leave scale_dtype out"
    if args.zp_dtype is not None and args.zp_dtype.is_floating_point:
        return f"zero points are whole numbers, not {args.zp_dtype}"
    if not args.symmetric and version == V1:
        return f"version 1 cannot store every zero point; choose quantization_format: {V2}"
    for what, count in (("columns", width), ("rows", rows)):
        if count * args.num_bits % _WORD:
            return f"{count} {what} of {args.num_bits} bits do not fill words of {_WORD} bits; ignore the layer"
    return _misfit(args, shape)


def _misfit(args: QuantizationArgs, shape: tuple[int, int]) -> str | None:
    try:
        scale_shape(shape, args)
    except SchemeError as error:
        return str(error)
    return None


def _packed(tensors: Mapping[str, Tensor]) -> Packed:
    missing = [name for name in ("qweight", "qzeros", "scales") if name not in tensors]
    if missing:
        raise CheckpointError(
            f"a quantized layer lacks {', '.join(missing)}; it has {', '.join(tensors) or 'no tensors'}"
        )
    qweight, qzeros, scales = tensors["qweight"], tensors["qzeros"], tensors["scales"]
    if scales.ndim != 2 or qweight.ndim != 2:
        raise CheckpointError(f"'qweight' and 'scales' are matrices, not {qweight.ndim} and {scales.ndim} dimensions")
    return Packed(qweight, qzeros, scales, tensors.get("g_idx"))
