"""awq: the checkpoint format of AutoAWQ, version gemm, that vLLM and transformers read."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from attrs import frozen
from torch import Tensor

from coldpress.numerics import scale_shape
from coldpress.plugin import (
    Attached,
    CheckpointError,
    Format,
    Quantized,
    Scheme,
    SchemeError,
    SchemeLookup,
    Stored,
    with_float16_scales,
)
from coldpress_awq_format.algorithm import NUM_BITS, Packed, pack, unpack
from coldpress_awq_format.config import is_head, read_config, write_config

_WORD = 8  # codes
_HEAD = "readers of awq take the output layer for dense; ignore it, or choose the format gptq"


@frozen(kw_only=True)
class AWQFormat(Format):
    """Integers of 4 bits with zero points and scales in float16, eight outputs to a word; inputs are left alone."""

    fuses_layers: ClassVar[bool] = True

    def complete(self, schemes: Mapping[str, Scheme], shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, Scheme]:
        """Scales in float16.

        Raises:
            SchemeError: layers have different schemes, and the configuration has place for one.
        """
        found = {name: with_float16_scales(scheme) for name, scheme in schemes.items()}
        first: tuple[str, Any] | None = None
        for name, scheme in found.items():
            args = scheme.weights
            own = None if args is None else (args.num_bits, args.strategy, args.group_size, args.symmetric)
            first = first or (name, own)
            if own != first[1]:
                raise SchemeError(
                    f"{name} and {first[0]} have different schemes, and awq knows one for all layers: ignore one of "
                    "them, or choose the format gptq, which knows more"
                )
        return found

    def check(self, scheme: Scheme, name: str, shape: tuple[int, int]) -> None:
        """Refuse what AWQ's readers cannot read: other numbers, symmetric ones, inputs, outputs that fill no words.

        And the output layer, which transformers takes for dense whatever the configuration says.
        """
        reason = _HEAD if is_head(name) else _obstacle(scheme, shape)
        if reason:
            raise SchemeError(f"{name}, {shape[0]} x {shape[1]}, cannot be written as awq: {reason}")

    def tensors(self, quantized: Quantized) -> dict[str, Tensor]:
        """`qweight`, `qzeros` and `scales`."""
        assert quantized.codes is not None, "refused by `check`"
        assert quantized.scale is not None
        assert quantized.zero_point is not None
        return pack(quantized.codes, quantized.scale, quantized.zero_point)._asdict()

    def config(
        self, schemes: Mapping[str, Scheme], ignore: Sequence[str], attachments: Sequence[Attached] = ()
    ) -> dict[str, Any] | None:
        """The table of `config.json`; None when nothing is quantized."""
        return write_config(schemes, ignore) if schemes else None

    def read(self, config: Mapping[str, Any]) -> SchemeLookup:
        """Read a table of this format, ours or another tool's."""
        return read_config(config)

    def restore(self, tensors: Mapping[str, Tensor], scheme: Scheme) -> Quantized:
        """Codes, scales and zero points of one layer."""
        missing = [name for name in Packed._fields if name not in tensors]
        if missing:
            raise CheckpointError(
                f"a quantized layer lacks {', '.join(missing)}; it has {', '.join(tensors) or 'no tensors'}"
            )
        packed = Packed(*(tensors[name] for name in Packed._fields))
        assert scheme.weights is not None
        try:
            if any(tensor.ndim != 2 for tensor in packed):
                raise ValueError("its tensors are not matrices")
            codes, scale, points = unpack(packed)
            if tuple(scale.shape) != scale_shape(tuple(codes.shape), scheme.weights):
                raise ValueError(f"scales are {tuple(scale.shape)} for codes of {tuple(codes.shape)}")
        except (ValueError, SchemeError) as error:
            raise CheckpointError(f"a quantized layer cannot be read: {error}") from error
        return Quantized(scheme, codes=codes, scale=scale, zero_point=points)

    def shape(self, stored: Mapping[str, Stored], scheme: Scheme) -> tuple[int, int] | None:
        """Of `qweight`, turned round."""
        if "qweight" not in stored:
            return None
        inputs, words = stored["qweight"].shape
        return words * _WORD, inputs

    def count_weights(self, stored: Mapping[str, Stored], scheme: Scheme) -> Mapping[str, int]:
        """The codes of `qweight`."""
        if "qweight" not in stored:
            return {}
        counts = {suffix: 0 for suffix in Packed._fields if suffix in stored}
        return {**counts, "qweight": stored["qweight"].nbytes() * 8 // NUM_BITS}


def _obstacle(scheme: Scheme, shape: tuple[int, int]) -> str | None:
    args, rows = scheme.weights, shape[0]
    if args is None or scheme.input_activations is not None or scheme.output_activations is not None:
        return "this format quantizes weights, and leaves inputs as they are; choose W4A16_ASYM"
    if args.type != "int" or args.num_bits != NUM_BITS:
        return f"its codes are integers of {NUM_BITS} bits, not {args.type}{args.num_bits}; choose W4A16_ASYM"
    if args.symmetric:
        return "its codes have zero points; choose W4A16_ASYM, or the format gptq"
    if args.strategy not in ("group", "channel"):
        return f"scales are those of groups or rows, not of strategy {args.strategy!r}"
    if args.scale_bits is not None:
        return f"scales of {args.scale_bits} bits, as in Q4_K, are for the format gguf; choose W4A16_ASYM"
    if args.scale_dtype != torch.float16:
        return f"scales are float16, not {args.scale_dtype}; leave scale_dtype out"
    if args.zp_dtype is not None and args.zp_dtype.is_floating_point:
        return f"zero points are whole numbers, not {args.zp_dtype}"
    if rows % _WORD:
        return f"{rows} outputs do not fill words of {_WORD} codes; ignore the layer"
    try:
        scale_shape(shape, args)
    except SchemeError as error:
        return str(error)
    return None
