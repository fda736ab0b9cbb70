"""Where bits lie; the oracle packs one code after the other, as the first tools did."""

import pytest
import torch

from coldpress_gptq_format.algorithm import Packed, pack, unpack


@pytest.fixture
def layer():
    def make(bits, groups=2, rows=32, width=64):
        generator = torch.Generator().manual_seed(bits)
        ends = -(2 ** (bits - 1)), 2 ** (bits - 1)
        codes = torch.randint(*ends, (rows, width), generator=generator, dtype=torch.int8)
        points = torch.randint(ends[0] + 1, ends[1], (rows, groups), generator=generator, dtype=torch.int8)
        return codes, torch.rand(rows, groups, generator=generator).half(), points

    return make


def stream(numbers, bits):
    """Numbers as one stream of bits, cut into words, one Python integer after the other."""
    total = sum(int(number) << (bits * place) for place, number in enumerate(numbers))
    words = [(total >> (32 * place)) & 0xFFFFFFFF for place in range(len(numbers) * bits // 32)]
    return [word - 2**32 if word >= 2**31 else word for word in words]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("offset", [0, 1])
def test_codes_run_along_inputs_and_zero_points_along_outputs(layer, bits, offset):
    codes, scale, points = layer(bits)

    packed = pack(codes, scale, points, num_bits=bits, offset=offset)

    half = 2 ** (bits - 1)
    assert packed.qweight[:, 5].tolist() == stream(codes[5].int() + half, bits)
    assert packed.qzeros[1].tolist() == stream(points[:, 1].int() + half - offset, bits)
    assert torch.equal(packed.scales, scale.t())
    assert packed.g_idx.tolist() == [0] * 32 + [1] * 32


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("offset", [0, 1])
def test_what_is_packed_is_unpacked(layer, bits, offset):
    parts = layer(bits)

    found = unpack(pack(*parts, num_bits=bits, offset=offset), num_bits=bits, offset=offset)

    assert all(torch.equal(one, other) for one, other in zip(found, parts, strict=True))


def test_what_it_stands_for_is_what_gptq_says(layer):
    codes, scale, points = layer(4)

    qweight, qzeros, scales, g_idx = pack(codes, scale, points, num_bits=4, offset=1)

    shifts = torch.arange(0, 32, 4)
    raw = (qweight[:, None] >> shifts[:, None]) & 15  # [K / 8, 8, N]
    zeros = ((qzeros[..., None] >> shifts) & 15).flatten(1) + 1  # [G, N]
    weight = scales[g_idx.long()] * (raw.flatten(0, 1) - zeros[g_idx.long()])  # [K, N]
    expected = (codes - points.repeat_interleave(32, 1)) * scale.repeat_interleave(32, 1)
    assert torch.equal(weight.t(), expected)


def test_the_smallest_zero_point_does_not_fit_into_version_1(layer):
    codes, scale, points = layer(4)
    points[3, 1] = -8

    with pytest.raises(ValueError, match="version 1"):
        pack(codes, scale, points, num_bits=4, offset=1)
    assert torch.equal(unpack(pack(codes, scale, points, num_bits=4, offset=0), num_bits=4, offset=0)[2], points)


def test_groups_that_are_not_runs_of_inputs_are_told(layer):
    packed = pack(*layer(4), num_bits=4, offset=0)

    with pytest.raises(ValueError, match="act-order"):
        unpack(packed._replace(g_idx=packed.g_idx.flip(0)), num_bits=4, offset=0)
    assert torch.equal(unpack(packed._replace(g_idx=None), num_bits=4, offset=0)[0], layer(4)[0])


def test_groups_that_do_not_divide_the_inputs_are_told(layer):
    packed = pack(*layer(4), num_bits=4, offset=0)

    with pytest.raises(ValueError, match="64 inputs do not split into 5 groups"):
        unpack(Packed(packed.qweight, packed.qzeros, torch.ones(5, 32), None), num_bits=4, offset=0)
