"""NVFP4 and FP8 as NVIDIA's Model Optimizer writes them.

x.weight [O, I / 2] uint8     x.weight_scale [O, I / 16] float8, x.weight_scale_2 float32, x.input_scale float32
x.weight [O, I] float8        x.weight_scale float32, x.input_scale float32

A weight is code * weight_scale * weight_scale_2; compressed-tensors keeps the inverse of the last factor.
`hf_quant_config.json` lies beside; which layers are quantized, and how, dtypes and shapes tell.
"""

from functools import partial
from typing import ClassVar

import torch
from attrs import evolve
from torch import Tensor, zeros_like

from coldpress.plugin import CheckpointError, CheckpointReader, Cut, Quantized, Scheme, Source, Weights, preset
from coldpress_sources.algorithm import unpack_fp4
from coldpress_sources.weights import Coded, CodedWeights, Known, Read

_GROUP = 16
_BESIDE = ("k_scale", "v_scale", "q_scale", "input_scale", "weight_scale", "weight_scale_2", "pre_quant_scale")


class ModelOptSource(Source):
    """A folder whose config.json says `quant_method: modelopt`, or in which `hf_quant_config.json` lies."""

    own_files: ClassVar[frozenset[str]] = frozenset({"hf_quant_config.json"})

    def weights(self) -> Weights:
        """The tensors of the dense model; weights in float32."""
        reader = CheckpointReader(self.path)
        reader.check()
        known, coded = Known(reader), {}
        for name in known.names:
            if name.endswith(".weight"):
                found = _coded(name, known)
                if found is not None:
                    coded[name] = found
        used = {name for one in coded.values() for name in one.stored}
        scaled = known.ending("pre_quant_scale")
        if scaled:
            raise CheckpointError(
                f"{reader.folder}: {scaled[0]} multiplies inputs before a layer (NVFP4_AWQ), which no plain model does"
            )
        return CodedWeights(reader, coded, [name for name in known.ending(*_BESIDE) if name not in used])


def _coded(name: str, known: Known) -> Coded | None:
    reader = known.reader
    dtype, shape = reader.dtype(name), tuple(reader.shape(name))
    if len(shape) != 2 or dtype not in (torch.uint8, torch.float8_e4m3fn):
        return None
    scale, inputs = known.beside(name, "weight_scale"), known.beside(name, "input_scale")
    if scale is None:
        raise CheckpointError(f"{reader.folder}: {name} holds codes, and no weight_scale lies beside it")
    if dtype == torch.float8_e4m3fn:
        if reader.shape(scale) not in ((), (1,)):
            raise CheckpointError(f"{reader.folder}: {scale} has the shape {reader.shape(scale)}, and must be a number")
        scheme = preset("FP8")
        if inputs is None:
            scheme = evolve(scheme, input_activations=None)
        stored = tuple(one for one in (name, scale, inputs) if one is not None)
        return Coded(stored, scheme, shape, partial(_restore_fp8, scheme, stored))
    factor, dense = known.beside(name, "weight_scale_2"), (shape[0], 2 * shape[1])
    if factor is None or tuple(reader.shape(scale)) != (dense[0], dense[1] // _GROUP):
        raise CheckpointError(
            f"{reader.folder}: {name} holds bytes and is no NVFP4, which has weight_scale_2 beside it and a "
            f"weight_scale of {(dense[0], dense[1] // _GROUP)}"
        )
    scheme = preset("NVFP4A16" if inputs is None else "NVFP4")
    stored = tuple(one for one in (name, scale, factor, inputs) if one is not None)
    return Coded(stored, scheme, dense, partial(_restore_fp4, scheme, stored))


def _restore_fp8(scheme: Scheme, stored: tuple[str, ...], read: Read, cut: Cut | None) -> Quantized:
    scale = read(stored[1]).float().reshape(1)
    found: dict[str, Tensor] = {}
    if len(stored) == 3:
        found["input_scale"] = read(stored[2]).float().reshape(1)
        found["input_zero_point"] = zeros_like(scale, dtype=torch.int8)
    points = zeros_like(scale, dtype=torch.int8)
    return Quantized(scheme, codes=read(stored[0]), scale=scale, zero_point=points, **found)


def _restore_fp4(scheme: Scheme, stored: tuple[str, ...], read: Read, cut: Cut | None) -> Quantized:
    scale = read(stored[1]).to(torch.bfloat16)  # which holds float8
    return Quantized(
        scheme,
        codes=unpack_fp4(read(stored[0])),
        scale=scale,
        zero_point=zeros_like(scale, dtype=torch.int8),
        global_scale=1 / read(stored[2]).float().reshape(1),
        input_global_scale=1 / read(stored[3]).float().reshape(1) if len(stored) == 4 else None,
    )
