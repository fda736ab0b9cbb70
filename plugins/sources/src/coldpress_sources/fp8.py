"""FP8 as DeepSeek, Qwen and others publish it, and DeepSeek-V4's FP4 beside it.

x.weight [O, I] float8 (E4M3)     x.weight_scale_inv [O / 128, I / 128] float32, which multiplies despite its name
x.weight [O, I] float8            x.scale [O / 128, I / 128] E8M0                     DeepSeek-V4
x.weight [O, I / 2] int8          x.scale [O, I / 32] E8M0: two numbers of FP4 a byte  its experts
x.weight [O, I] float8            x.weight_scale, one number or one a row; x.input_scale or x.activation_scale

What a weight is, the dtype and the shape of its scales tell; a scale may lie in another file than its weight.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, zeros_like

from coldpress.plugin import (
    CheckpointError,
    CheckpointReader,
    Cut,
    QuantizationArgs,
    Quantized,
    Scheme,
    Source,
    Weights,
    preset,
)
from coldpress_sources.algorithm import block_of, load_scale, unpack_fp4
from coldpress_sources.weights import Coded, CodedWeights, Known, Read

_SCALES = ("weight_scale_inv", "weight_scale", "scale")
_INPUTS = ("input_scale", "activation_scale")
_CACHE = ("k_scale", "v_scale", "q_scale")
_BLOCK = (128, 128)
_FP4_GROUP = 32


class FP8Source(Source):
    """A folder whose config.json says `quant_method: fp8`."""

    def weights(self) -> Weights:
        """The tensors of the dense model; weights in float32, in which float8 times a scale is rounded once."""
        reader = CheckpointReader(self.path)
        reader.check()
        settings = reader.quantization()
        known, coded = Known(reader), {}
        for name in known.names:
            if name.endswith(".weight"):
                found = _coded(name, known, settings)
                if found is not None:
                    coded[name] = found
        return CodedWeights(reader, coded, _beside(known, coded))


def _beside(known: Known, coded: Mapping[str, Coded]) -> list[str]:
    used = {name for one in coded.values() for name in one.stored}
    return [name for name in known.ending(*_CACHE, *_INPUTS, *_SCALES[:2]) if name not in used]


def _coded(name: str, known: Known, settings: Mapping[str, Any]) -> Coded | None:
    """What a weight is; None where it is whole.

    Raises:
        CheckpointError: it is codes, and its scales are missing or fit no way of quantizing.
    """
    dtype, shape = known.reader.dtype(name), known.reader.shape(name)
    if len(shape) != 2 or dtype not in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8):
        return None
    scale = known.beside(name, *_SCALES)
    if scale is None:
        raise CheckpointError(
            f"{known.reader.folder}: {name} is {str(dtype).removeprefix('torch.')}, and none of "
            f"{', '.join(_SCALES)} lies beside it"
        )
    if dtype == torch.float8_e5m2:
        raise CheckpointError(f"{known.reader.folder}: {name} is float8_e5m2; weights in float8_e4m3fn can be read")
    scales = tuple(known.reader.shape(scale))
    if dtype != torch.float8_e4m3fn:
        return _fp4(name, scale, (shape[0], 2 * shape[1]), scales, known)
    return _fp8(name, scale, (shape[0], shape[1]), scales, known, settings)


def _fp4(name: str, scale: str, shape: tuple[int, int], scales: tuple[int, ...], known: Known) -> Coded:
    if scales != (shape[0], shape[1] // _FP4_GROUP):
        raise CheckpointError(
            f"{known.reader.folder}: {name} holds bytes, and {scale} has the shape {scales} where FP4 in groups of "
            f"{_FP4_GROUP} has {(shape[0], shape[1] // _FP4_GROUP)}"
        )
    scheme = preset("MXFP4A16")
    return Coded((name, scale), scheme, shape, partial(_restore_fp4, scheme, name, scale), dtype=torch.bfloat16)


def _fp8(
    name: str, scale: str, shape: tuple[int, int], scales: tuple[int, ...], known: Known, settings: Mapping[str, Any]
) -> Coded:
    inputs = known.beside(name, *_INPUTS)
    block = settings.get("weight_block_size")
    usual = (int(block[0]), int(block[1])) if isinstance(block, list) and len(block) == 2 else _BLOCK
    grid: dict[str, Any] = {"num_bits": 8, "type": "float"}
    sides = block_of(shape, scales, usual) if len(scales) == 2 else None
    if sides is not None and isinstance(block, list):
        args, inputs = QuantizationArgs(strategy="block", block_structure=sides, **grid), None
    elif scales in ((), (1,), (1, 1)):
        args = QuantizationArgs(strategy="tensor", **grid)
    elif scales in ((shape[0],), (shape[0], 1)):
        args = QuantizationArgs(strategy="channel", **grid)
    elif sides is not None:
        args, inputs = QuantizationArgs(strategy="block", block_structure=sides, **grid), None
    else:
        raise CheckpointError(
            f"{known.reader.folder}: {scale} has the shape {scales}, which is no scale of {name}, "
            f"{shape[0]} x {shape[1]}"
        )
    scheme = Scheme(
        targets=("Linear",), weights=args, input_activations=_inputs(args, settings, static=inputs is not None)
    )
    stored = (name, scale) if inputs is None else (name, scale, inputs)
    return Coded(stored, scheme, shape, partial(_restore_fp8, scheme, stored))


def _inputs(args: QuantizationArgs, settings: Mapping[str, Any], *, static: bool) -> QuantizationArgs | None:
    """How inputs are quantized where the checkpoint is served."""
    if static:
        return preset("FP8").input_activations
    if settings.get("activation_scheme", "dynamic") != "dynamic":
        return None
    return preset("FP8_BLOCK" if args.strategy == "block" else "FP8_DYNAMIC").input_activations


def _restore_fp4(scheme: Scheme, weight: str, scale: str, read: Read, cut: Cut | None) -> Quantized:
    factors = load_scale(read(scale))
    return Quantized(
        scheme, codes=unpack_fp4(read(weight)), scale=factors, zero_point=zeros_like(factors, dtype=torch.int8)
    )


def _restore_fp8(scheme: Scheme, stored: tuple[str, ...], read: Read, cut: Cut | None) -> Quantized:
    factors = _as_strategy(load_scale(read(stored[1])).float(), scheme)
    found: dict[str, Tensor] = {}
    if len(stored) == 3:
        found["input_scale"] = read(stored[2]).float().reshape(1)
        found["input_zero_point"] = zeros_like(found["input_scale"], dtype=torch.int8)
    points = zeros_like(factors, dtype=torch.int8)
    return Quantized(scheme, codes=read(stored[0]), scale=factors, zero_point=points, **found)


def _as_strategy(scale: Tensor, scheme: Scheme) -> Tensor:
    assert scheme.weights is not None
    if scheme.weights.strategy == "tensor":
        return scale.reshape(1)
    return scale.reshape(-1, 1) if scheme.weights.strategy == "channel" else scale
