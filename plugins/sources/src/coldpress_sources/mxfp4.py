"""MXFP4 as gpt-oss is published: experts in joint tensors, blocks of 32 numbers beside exponents.

experts.gate_up_proj_blocks [E, O, I / 32, 16] uint8, two numbers a byte, the first in the low half
experts.gate_up_proj_scales [E, O, I / 32] uint8, exponents plus 127
experts.gate_up_proj        [E, I, O], the dense tensor: turned round

Numbers of FP4 times powers of two are exact in bfloat16.
"""

from functools import partial

import torch
from torch import zeros_like

from coldpress.plugin import CheckpointError, CheckpointReader, Cut, Quantized, Scheme, Source, Weights, preset
from coldpress_sources.algorithm import load_scale, unpack_blocks
from coldpress_sources.weights import Coded, CodedWeights, Known, Read

_BLOCKS, _SCALES = "_blocks", "_scales"


class MXFP4Source(Source):
    """A folder whose config.json says `quant_method: mxfp4`."""

    def weights(self) -> Weights:
        """The tensors of the dense model, in bfloat16."""
        reader = CheckpointReader(self.path)
        reader.check()
        known = Known(reader)
        coded = {}
        for name in known.names:
            if name.endswith(_BLOCKS):
                coded[name.removesuffix(_BLOCKS)] = _coded(name.removesuffix(_BLOCKS), known)
        return CodedWeights(reader, coded)


def _coded(name: str, known: Known) -> Coded:
    blocks, scales = f"{name}{_BLOCKS}", f"{name}{_SCALES}"
    if scales not in known.names:
        raise CheckpointError(f"{known.reader.folder} holds {blocks}, and lacks {scales}")
    shape, there = known.reader.shape(blocks), tuple(known.reader.shape(scales))
    if len(shape) != 4 or shape[-1] != 16 or there != shape[:-1] or known.reader.dtype(blocks) != torch.uint8:
        raise CheckpointError(
            f"{known.reader.folder}: {blocks} {tuple(shape)} and {scales} {there} are not blocks of 32 numbers and "
            "their exponents"
        )
    experts, rows, groups, _ = shape
    scheme = preset("MXFP4A16")
    restore = partial(_restore, scheme, blocks, scales)
    dense = (experts, 32 * groups, rows)
    return Coded((blocks, scales), scheme, dense, restore, dtype=torch.bfloat16, turned=True)


def _restore(scheme: Scheme, blocks: str, scales: str, read: Read, cut: Cut | None) -> Quantized:
    assert cut is not None, "experts are read one by one"
    scale = load_scale(cut(read(scales)))  # [O, I / 32]
    codes = unpack_blocks(cut(read(blocks)))  # [O, I]
    return Quantized(scheme, codes=codes, scale=scale, zero_point=zeros_like(scale, dtype=torch.int8))
