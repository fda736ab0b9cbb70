"""compressed-tensors: the checkpoint format of llm-compressor, which vLLM and transformers read."""

import logging
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, ClassVar

from attrs import Attribute, evolve, field, frozen
from torch import Tensor, float8_e4m3fn, int8, uint8, zeros_like

from coldpress.numerics import pack_floats, quantize, scale_shape, unpack_floats
from coldpress.plugin import (
    Attached,
    AttachmentLookup,
    CheckpointError,
    Format,
    KVCache,
    OnlineRotation,
    QuantizationArgs,
    Quantized,
    Scheme,
    SchemeError,
    SchemeLookup,
    State,
    Stored,
    Weights,
    initialization_reads_weights,
    number_format,
)
from coldpress_compressed_tensors.algorithm import (
    load_scale,
    pack_codes,
    pack_zero_points,
    store_scale,
    unpack_codes,
    unpack_zero_points,
)
from coldpress_compressed_tensors.config import read_cache, read_config, write_cache, write_config
from coldpress_compressed_tensors.layout import (
    DENSE,
    LAYOUTS,
    PACK,
    PACKED_FLOATS,
    WITHOUT_WEIGHT,
    choose,
    is_read_dense,
    obstacle,
    own_scale_dtype,
    without_float16,
)
from coldpress_compressed_tensors.transforms import (
    check_rotation,
    read_matrix,
    read_transforms,
    rotation_tensors,
    write_transforms,
)

log = logging.getLogger(__name__)


@frozen(kw_only=True)
class CompressedTensorsFormat(Format):
    """Codes as they are served, scales beside them, and a `quantization_config` that says which layer has which.

    Attributes:
        quantization_format: layout of every layer, in place of the one that its scheme gets (see `layout.py`).
    """

    fuses_layers: ClassVar[bool] = True

    quantization_format: str | None = field(default=None)

    @quantization_format.validator
    def _check_layout(self, attribute: "Attribute[str | None]", value: str | None) -> None:
        if value is not None and value not in LAYOUTS:
            raise SchemeError(f"quantization_format is {value!r}; there are {', '.join(LAYOUTS)}, or leave it out")

    def check(self, scheme: Scheme, name: str, shape: tuple[int, int]) -> None:
        """Refuse what the layout of the scheme cannot hold, and groups that do not divide the layer's columns."""
        layout = self._layout(scheme)
        reason = obstacle(scheme, layout)
        if reason:
            raise SchemeError(
                f"{name} cannot be written as compressed-tensors: {reason}; change its scheme or ignore it"
            )
        assert scheme.weights is not None
        try:
            scale_shape(shape, scheme.weights)
        except SchemeError as error:
            raise SchemeError(f"{name}, {shape[0]} x {shape[1]}: {error}") from error

    def tensors(self, quantized: Quantized) -> dict[str, Tensor]:
        """The tensors of the layout; names, shapes and dtypes are in the README of this plugin."""
        args, layout = quantized.scheme.weights, self._layout(quantized.scheme)
        assert args is not None, "refused by `check`"
        assert quantized.codes is not None
        assert quantized.scale is not None
        codes, scale = quantized.codes, quantized.scale
        if layout == PACK:
            tensors = pack_codes(codes, args.num_bits)
        elif layout in PACKED_FLOATS:
            tensors = {"weight_packed": pack_floats(codes, number_format(args))}
        else:
            tensors = {"weight": quantized.weight(scale.dtype) if layout == DENSE else codes.contiguous()}
        tensors["weight_scale"] = store_scale(scale, None if layout == DENSE else own_scale_dtype(args))
        if quantized.global_scale is not None:
            tensors["weight_global_scale"] = quantized.global_scale.contiguous()
        # A zero point of a symmetric scheme is never written: vLLM has no parameter to load it into.
        if not args.symmetric:
            assert quantized.zero_point is not None
            zero_point = quantized.zero_point
            packed = pack_zero_points(zero_point, args.num_bits) if layout == PACK else zero_point.contiguous()
            tensors["weight_zero_point"] = packed
        return {**tensors, **_input_tensors(quantized)}

    def check_attachment(self, attached: Attached) -> None:
        """Take keys and values, which `kv_cache_scheme` tells, and online rotations, which `transform_config` does."""
        if isinstance(attached.attachment, OnlineRotation):
            check_rotation(attached)
        elif not isinstance(attached.attachment, KVCache):
            super().check_attachment(attached)

    def config(
        self, schemes: Mapping[str, Scheme], ignore: Sequence[str], attachments: Sequence[Attached] = ()
    ) -> dict[str, Any] | None:
        """The table of `config.json`; None when nothing is quantized."""
        if not schemes and not attachments:
            return None
        config = write_config(
            {n: evolve(without_float16(s), format=self._layout(s)) for n, s in schemes.items()},
            ignore if schemes else [],
        )
        return write_transforms(write_cache(config, attachments), attachments)

    def check_model(self, state: State, names: Sequence[str]) -> None:
        """Say of a model that transformers will not be able to load, and why; it is written all the same."""
        schemes = {**{name: planned.scheme for name, planned in state.plan.items()}, **state.schemes}
        schemes = {name: evolve(scheme, format=self._layout(scheme)) for name, scheme in schemes.items()}
        if not is_read_dense(schemes.values()) and _fails(state.model, schemes):
            log.warning(
                "transformers will not load this checkpoint, which coldpress.load_model reads: its initialization of "
                "%s needs the weights of layers that are packed, and they can be made dense only where all have one "
                "scheme of int weights alone, as with W4A16; schemes of 8-bit weights and inputs (W8A8, FP8_DYNAMIC) "
                "are loaded too",
                type(state.model).__name__,
            )

    def config_for(
        self, config: dict[str, Any], model: Callable[[], Any], schemes: Mapping[str, Scheme]
    ) -> dict[str, Any]:
        """With `dequantize` where transformers can load the model in no other way; others do not look at it."""
        schemes = {name: evolve(scheme, format=self._layout(scheme)) for name, scheme in schemes.items()}
        attached = config["kv_cache_scheme"] or config["transform_config"]  # which it leaves out where it dequantizes
        if attached or not is_read_dense(schemes.values()):
            return config
        asymmetric = any(scheme.weights and not scheme.weights.symmetric for scheme in schemes.values())
        return {**config, "dequantize": True} if asymmetric or _fails(model(), schemes) else config

    def attachments(self, config: Mapping[str, Any]) -> AttachmentLookup:
        """`kv_cache_scheme` and `transform_config`."""
        cache, transforms = read_cache(config), read_transforms(config)
        return lambda name, class_names, tensors: [
            *transforms(name, class_names, tensors),
            *cache(name, class_names, tensors),
        ]

    def attachment_tensors(self, attachments: Sequence[Attached]) -> dict[str, Tensor]:
        """The matrices of online rotations."""
        return rotation_tensors(attachments)

    def attachment_buffers(self, attached: Attached, weights: Weights) -> Mapping[str, Tensor] | None:
        """The matrix of an online rotation that the configuration does not tell."""
        return read_matrix(attached, weights)

    def read(self, config: Mapping[str, Any]) -> SchemeLookup:
        """Read a table of this format, ours or the library's."""
        return read_config(config)

    def restore(self, tensors: Mapping[str, Tensor], scheme: Scheme) -> Quantized:
        """Codes, scales and zero points of one layer."""
        args, layout = scheme.weights, self._layout(scheme)
        reason = obstacle(scheme, layout)
        if reason or args is None:
            raise CheckpointError(f"a layer cannot be read: {reason}")
        codes = _unpacked(tensors, args, layout) if layout in (PACK, *PACKED_FLOATS) else _take(tensors, "weight")
        scale = _shaped(tensors, "weight_scale", scale_shape(tuple(codes.shape), args))
        scale = load_scale(scale, None if layout == DENSE else own_scale_dtype(args))
        factor = _shaped(tensors, "weight_global_scale", (1,)) if args.strategy == "tensor_group" else None
        zero_point = _zero_point(tensors, args, scale, packed=layout == PACK)
        if layout == DENSE:  # in float32, where no code can fall to its neighbour
            codes = quantize(codes.float(), scale.float(), zero_point, args, global_scale=factor)
        elif codes.dtype != (int8 if args.type == "int" else float8_e4m3fn):
            raise CheckpointError(f"'weight' has the dtype {codes.dtype}, which is not that of {args.type}8 codes")
        inputs = _restored_inputs(tensors, scheme)
        return Quantized(scheme, codes=codes, scale=scale, zero_point=zero_point, global_scale=factor, **inputs)

    def count_weights(self, stored: Mapping[str, Stored], scheme: Scheme) -> Mapping[str, int]:
        """The codes of `weight_packed` or of a `weight` that has a scale beside it."""
        counts = {suffix: 0 for suffix in stored if suffix.startswith(("weight_", "input_"))}
        if not counts:
            return {}
        if "weight_packed" not in stored:
            return {**counts, "weight": prod(stored["weight"].shape)} if "weight" in stored else {}
        if "weight_shape" in stored:  # the words of a row may hold more than its codes
            return {**counts, "weight_packed": prod(_stated_shape(stored, scheme))}
        assert scheme.weights is not None
        return {**counts, "weight_packed": stored["weight_packed"].nbytes() * 8 // scheme.weights.num_bits}

    def shape(self, stored: Mapping[str, Stored], scheme: Scheme) -> tuple[int, int] | None:
        """Of `weight`, of what `weight_shape` says, or of as many codes as a row of bytes holds."""
        if "weight" in stored:
            rows, columns = stored["weight"].shape
        elif "weight_shape" in stored:
            rows, columns = _stated_shape(stored, scheme)
        elif "weight_packed" in stored and scheme.weights is not None:
            rows, width = stored["weight_packed"].shape
            columns = width * 8 // scheme.weights.num_bits
        else:
            return None
        return rows, columns

    def _layout(self, scheme: Scheme) -> str:
        return self.quantization_format or scheme.format or choose(scheme)


def _stated_shape(stored: Mapping[str, Stored], scheme: Scheme) -> tuple[int, int]:
    """What `weight_shape` says, if the packed codes are as many.

    Raises:
        CheckpointError: they are not, or it is no pair of numbers.
    """
    found = stored["weight_shape"].read()
    if found.shape != (2,) or found.is_floating_point():
        raise CheckpointError(f"'weight_shape' is no pair of whole numbers: {found.dtype} {tuple(found.shape)}")
    rows, columns = (int(size) for size in found)
    packed = stored["weight_packed"].shape if "weight_packed" in stored else (rows, columns)
    bits = scheme.weights.num_bits if scheme.weights is not None else 0
    if rows != packed[0] or not 0 < columns * bits <= packed[-1] * 32:
        raise CheckpointError(f"'weight_shape' is [{rows}, {columns}], and 'weight_packed' {list(packed)}")
    return rows, columns


def _fails(model: Any, schemes: Mapping[str, Scheme]) -> bool:
    """Whether transformers' initialization of the model needs what packed layers do not have."""
    return initialization_reads_weights(model, [name for name, one in schemes.items() if one.format in WITHOUT_WEIGHT])


def _input_tensors(quantized: Quantized) -> dict[str, Tensor]:
    args = quantized.scheme.input_activations
    if args is None or args.dynamic is True:
        return {}
    if args.dynamic == "local":
        assert quantized.input_global_scale is not None
        return {"input_global_scale": quantized.input_global_scale.contiguous()}
    assert quantized.input_scale is not None
    tensors = {"input_scale": quantized.input_scale.contiguous()}
    if not args.symmetric:
        assert quantized.input_zero_point is not None
        tensors["input_zero_point"] = quantized.input_zero_point.contiguous()
    return tensors


def _restored_inputs(tensors: Mapping[str, Tensor], scheme: Scheme) -> dict[str, Tensor]:
    args = scheme.input_activations
    if args is None or args.dynamic is True:
        return {}
    if args.dynamic == "local":
        return {"input_global_scale": _shaped(tensors, "input_global_scale", (1,))}
    scale = _shaped(tensors, "input_scale", (1,))
    point = zeros_like(scale, dtype=int8) if args.symmetric else _shaped(tensors, "input_zero_point", (1,))
    return {"input_scale": scale, "input_zero_point": point}


def _unpacked(tensors: Mapping[str, Tensor], args: QuantizationArgs, layout: str) -> Tensor:
    packed = _take(tensors, "weight_packed")
    if layout in PACKED_FLOATS:
        if packed.dtype != uint8 or packed.shape[-1] * 8 % args.num_bits:
            raise CheckpointError(
                f"'weight_packed' is no row of {args.num_bits}-bit codes: {packed.dtype} {packed.shape}"
            )
        return unpack_floats(packed, number_format(args))
    shape = _take(tensors, "weight_shape")
    try:
        return unpack_codes(packed, shape, args.num_bits)
    except ValueError as error:
        raise CheckpointError(
            f"'weight_packed' is not a stream of {args.num_bits}-bit codes: {error}; early releases of "
            "compressed-tensors padded each word of 3, 5, 6 or 7 bits, which cannot be read: compress the model again"
        ) from error


def _zero_point(tensors: Mapping[str, Tensor], args: QuantizationArgs, scale: Tensor, *, packed: bool) -> Tensor:
    if args.symmetric:
        return zeros_like(scale, dtype=int8)
    if not packed:
        return _shaped(tensors, "weight_zero_point", tuple(scale.shape))
    try:
        return unpack_zero_points(_take(tensors, "weight_zero_point"), tuple(scale.shape), args.num_bits)
    except ValueError as error:
        raise CheckpointError(f"'weight_zero_point' is not a stream of {args.num_bits}-bit codes: {error}") from error


def _take(tensors: Mapping[str, Tensor], suffix: str) -> Tensor:
    if suffix not in tensors:
        raise CheckpointError(f"a quantized layer lacks {suffix!r}; it has {', '.join(tensors) or 'no tensors'}")
    return tensors[suffix]


def _shaped(tensors: Mapping[str, Tensor], suffix: str, shape: tuple[int, ...]) -> Tensor:
    tensor = _take(tensors, suffix)
    if tensor.ndim == 0 and shape == (1,):
        return tensor.reshape(1)  # early releases wrote the scale of a tensor without dimensions
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"{suffix!r} has the shape {tuple(tensor.shape)} where the scheme needs {shape}")
    return tensor
