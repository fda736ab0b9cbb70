"""Packing, held against the library and against a slow oracle of Python's whole numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coldpress.numerics import pack_floats, pack_int32, pack_rows_int32, unpack_int32, unpack_rows_int32
from coldpress.schemes.number_format import BUILT_IN

LIBRARY = "compressed_tensors.compressors.pack_quantized.helpers"
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 100))


def codes_of(shape: tuple[int, ...], num_bits: int, seed: int = 0) -> Tensor:
    end = 2 ** (num_bits - 1)
    return torch.randint(-end, end, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


@given(num_bits=st.integers(1, 8), shape=SHAPES, seed=st.integers(0, 10**9))
@settings(max_examples=300, deadline=None)
def test_packed_codes_are_the_librarys_and_unpack(num_bits, shape, seed):
    library = pytest.importorskip(LIBRARY)
    codes = codes_of(shape, num_bits, seed)

    packed = pack_int32(codes, num_bits)

    assert packed.is_contiguous()
    assert torch.equal(packed, library.pack_to_int32(codes, num_bits))
    assert torch.equal(unpack_int32(packed, num_bits, shape), codes)
    assert torch.equal(library.unpack_from_int32(packed, num_bits, torch.Size(shape)), codes)


@given(num_bits=st.integers(1, 8), shape=SHAPES, seed=st.integers(0, 10**9))
@settings(max_examples=100, deadline=None)
def test_packed_rows_are_the_librarys_and_unpack(num_bits, shape, seed):
    library = pytest.importorskip(LIBRARY)
    codes = codes_of(shape, num_bits, seed)

    packed = pack_rows_int32(codes, num_bits)

    assert packed.is_contiguous()
    assert torch.equal(packed, library.pack_to_int32(codes, num_bits, packed_dim=0))
    assert torch.equal(unpack_rows_int32(packed, num_bits, shape), codes)


@pytest.mark.parametrize("num_bits", range(1, 9))
def test_a_row_is_one_stream_of_bits(num_bits):
    codes = codes_of((1, 37), num_bits)
    stream = sum((code + 2 ** (num_bits - 1)) << (i * num_bits) for i, code in enumerate(codes[0].tolist()))

    words = pack_int32(codes, num_bits)[0].tolist()

    assert sum((word & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(words)) == stream


@pytest.mark.parametrize("num_bits", [3, 4])
def test_experts_are_packed_one_by_one(num_bits):
    codes = codes_of((3, 4, 21), num_bits)

    packed = pack_int32(codes, num_bits)

    assert torch.equal(packed, torch.stack([pack_int32(expert, num_bits) for expert in codes]))
    assert torch.equal(unpack_int32(packed, num_bits, (3, 4, 21)), codes)


def test_what_is_not_a_view_of_whole_rows_packs_too():
    codes = codes_of((6, 32), 4)

    assert torch.equal(pack_int32(codes[::2, 1::3], 4), pack_int32(codes[::2, 1::3].contiguous(), 4))
    assert torch.equal(
        unpack_int32(pack_int32(codes, 4)[:, ::2], 4, (6, 16)), codes.view(6, 4, 8)[:, ::2].reshape(6, 16)
    )


@pytest.mark.parametrize("shape", [(1, 16), (16, 16), (3, 2), (5, 6), (300, 1024), (2, 3, 4), (2,)])
def test_float4_is_packed_by_its_place_in_the_grid(shape):
    grid = BUILT_IN["float4"]
    numbers = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    places = torch.randint(0, 16, shape, generator=torch.Generator().manual_seed(0))
    expected = places[..., 0::2] + 16 * places[..., 1::2]

    for dtype in (torch.float8_e4m3fn, torch.float32):
        assert torch.equal(pack_floats(numbers[places].to(dtype), grid), expected.to(torch.uint8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_int32(torch.zeros(1, 8, dtype=torch.int32), 4), "expected torch.int8, got torch.int32"),
        (lambda: pack_int32(torch.zeros(1, 8, dtype=torch.int8), 9), "num_bits must be 1 to 8, got 9"),
        (lambda: unpack_int32(torch.zeros(1, 8), 4, (1, 8)), "expected torch.int32, got torch.float32"),
        (
            lambda: unpack_int32(torch.zeros(1, 8, dtype=torch.int32), 4, (1, 72)),
            r"\(1, 72\) codes of 4 bits take \(1, 9\) words, got \(1, 8\)",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("grid", ["int3", "int4", "int8", "float4", "float6"])
def test_what_packed_codes_take_is_known_without_them(grid):
    number_format = BUILT_IN[grid]
    codes = torch.zeros(5, 48, dtype=number_format.code_dtype)
    if number_format.code_dtype == torch.int8:
        packed, empty = (pack_int32(each, number_format.num_bits) for each in (codes, codes.to("meta")))
    else:
        packed, empty = (pack_floats(each, number_format) for each in (codes, codes.to("meta")))

    assert empty.is_meta
    assert (empty.shape, empty.dtype) == (packed.shape, packed.dtype)
