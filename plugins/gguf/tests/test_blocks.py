"""Blocks against the decoder of the library gguf, and back."""

import gguf
import pytest
import torch
from attrs import evolve
from gguf.quants import dequantize

from coldpress.schemes import QuantizationArgs, Scheme, preset
from coldpress.testing.rounding import rounded_weight
from coldpress_gguf.blocks import TYPES

FLOAT16 = torch.float16


def scheme(**settings):
    return Scheme(targets=("Linear",), weights=QuantizationArgs.from_dict(settings))


SCHEMES = {
    "Q4_0": scheme(num_bits=4, group_size=64, scale_dtype=FLOAT16),
    "Q4_0 tensor": scheme(num_bits=3, strategy="tensor", scale_dtype=FLOAT16),
    "Q4_1": scheme(num_bits=4, group_size=32, symmetric=False, scale_dtype=FLOAT16),
    "Q4_1 narrow": scheme(num_bits=2, group_size=128, symmetric=False, scale_dtype=FLOAT16),
    "Q5_0": scheme(num_bits=5, strategy="channel", scale_dtype=FLOAT16),
    "Q5_1": scheme(num_bits=5, group_size=128, symmetric=False, scale_dtype=FLOAT16),
    "Q8_0": scheme(num_bits=8, group_size=32, scale_dtype=FLOAT16),
    "MXFP4": preset("MXFP4A16"),
    "NVFP4": preset("NVFP4A16"),
    "Q4_K": preset("Q4_K"),
    "Q5_K": preset("Q5_K"),
    "Q6_K": preset("Q6_K"),
}
# One product more than ours, or a minimum that float16 rounds: half a unit in its last place.
TOLERANCE = {"NVFP4": 1e-7, "Q4_K": 1e-7, "Q5_K": 1e-7, "Q4_1": 2**-11, "Q5_1": 2**-11}


@pytest.fixture
def weight():
    found = torch.randn(48, 512, generator=torch.Generator().manual_seed(0)) * 0.05  # [O, I]
    found[3] = 0
    found[5, :256] = found[5, :256].abs() + 0.1  # a range that does not hold zero
    found[6] *= 1e-3
    found[7] = found[7].abs()
    found[7, ::10] *= -0.001  # minima much smaller than scales
    return found


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_library_decodes_our_weights(weight, name, dtype):
    quantized, kind = rounded_weight(weight.to(dtype), SCHEMES[name]), name.split()[0]
    quantized.check((48, 512))

    blocks = TYPES[kind].pack(quantized)

    assert blocks.shape == (48, 512 // TYPES[kind].size * TYPES[kind].nbytes)
    theirs = torch.from_numpy(dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind]))
    theirs = theirs if quantized.global_scale is None else theirs / quantized.global_scale
    if kind in TOLERANCE:
        torch.testing.assert_close(theirs, quantized.weight(torch.float32), rtol=0, atol=0.3 * TOLERANCE[kind])
    else:
        assert torch.equal(theirs, quantized.weight(torch.float32))


@pytest.mark.parametrize("name", SCHEMES)
def test_blocks_are_unpacked_to_the_bit(weight, name):
    quantized, kind = rounded_weight(weight, SCHEMES[name]), TYPES[name.split()[0]]

    again = kind.unpack(kind.pack(quantized), SCHEMES[name])

    assert torch.equal(again.codes.float(), quantized.codes.float())
    assert torch.equal(again.scale.float(), quantized.scale.float())
    assert torch.equal(again.zero_point.float(), quantized.zero_point.float())


@pytest.mark.parametrize("name", SCHEMES)
def test_the_size_of_blocks_is_known_without_data(weight, name):
    quantized, kind = rounded_weight(weight, SCHEMES[name]), TYPES[name.split()[0]]
    parts = {part: getattr(quantized, part) for part in ("codes", "scale", "zero_point", "global_scale")}
    promised = evolve(quantized, **{part: x.to("meta") for part, x in parts.items() if x is not None})

    assert kind.pack(promised).shape == kind.pack(quantized).shape


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
def test_scales_that_are_no_multiples_are_refused(weight, name):
    quantized = rounded_weight(weight, SCHEMES[name])
    noise = 1 + 0.01 * torch.rand(quantized.scale.shape, generator=torch.Generator().manual_seed(0))

    with pytest.raises(ValueError, match="not multiples"):
        TYPES[name].pack(evolve(quantized, scale=quantized.scale * noise))
