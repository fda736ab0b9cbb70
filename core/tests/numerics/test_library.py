"""Every number, bit for bit, against the library compressed-tensors."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("compressed_tensors", reason="every number here is held against this library")

from compressed_tensors.compressors.mx_utils import compress_mx_scale
from compressed_tensors.compressors.mxfp6.helpers import pack_fp6_to_uint8
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.quantization import QuantizationArgs as LibraryArgs
from compressed_tensors.quantization.lifecycle import forward as library
from compressed_tensors.quantization.utils import calculate_qparams as library_qparams
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp as library_dynamic_qparams
from compressed_tensors.quantization.utils import generate_gparam

from coldpress.errors import SchemeError
from coldpress.numerics import (
    calculate_global_scale,
    calculate_qparams,
    decode_exponents,
    dequantize,
    dynamic_qparams,
    encode_exponents,
    fake_quantize,
    fake_quantize_groups,
    group,
    pack_floats,
    quantize,
    scale_shape,
    unpack_floats,
)
from coldpress.schemes import QuantizationArgs, number_format

FP8 = torch.float8_e4m3fn
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
GRIDS: tuple[dict[str, Any], ...] = (
    *({"num_bits": bits, "symmetric": symmetric} for bits in range(2, 9) for symmetric in (True, False)),
    {"num_bits": 8, "type": "float"},
    {"num_bits": 6, "type": "float"},
    {"num_bits": 4, "type": "float"},
)
MICROSCALED = tuple(
    {"num_bits": bits, "type": "float", "group_size": 32, "scale_dtype": torch.uint8} for bits in (4, 6, 8)
)
WEIGHTS: tuple[tuple[dict[str, Any], tuple[int, int]], ...] = (
    ({"strategy": "tensor"}, (7, 13)),
    ({"strategy": "channel"}, (7, 13)),
    ({"strategy": "channel"}, (5, 1)),
    ({"strategy": "group", "group_size": 8}, (7, 24)),
    ({"strategy": "group", "group_size": 24}, (1, 24)),
    ({"strategy": "group", "group_size": 1}, (3, 4)),
    ({"strategy": "block", "block_structure": (4, 3)}, (8, 9)),
    ({"strategy": "block", "block_structure": (4, 3)}, (7, 10)),
)
ACTIVATIONS: tuple[tuple[dict[str, Any], tuple[int, ...]], ...] = (
    ({"strategy": "token", "dynamic": True}, (2, 5, 12)),
    ({"strategy": "tensor", "dynamic": True}, (2, 5, 12)),
    ({"strategy": "tensor", "dynamic": True}, (5, 12)),
    ({"strategy": "group", "group_size": 4, "dynamic": True}, (2, 5, 12)),
    ({"strategy": "group", "group_size": 4, "dynamic": True}, (5, 12)),
)


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Random numbers of many sizes, with rows of zeros, of one sign and of denormals, and an outlier."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x *= 10.0 ** torch.randint(-4, 3, (*shape[:-1], 1), generator=generator)
    kind = torch.randint(0, 8, (*shape[:-1], 1), generator=generator)
    x = torch.where(kind == 0, 0.0, x)
    x = torch.where(kind == 1, x.abs(), x)
    x = torch.where(kind == 2, x * torch.finfo(dtype).tiny / x.abs().max(), x)
    x = torch.where(kind == 3, x.round(), x)  # ties and zeros of both signs
    x.view(-1)[seed % x.numel()] *= 3e2
    return x.clamp(-6e4, 6e4).to(dtype)


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Equal in dtype, shape and bits, but that -0.0 may be 0.0."""
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and torch.equal(ours.double(), theirs.double())


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    """Equal in dtype, shape and every bit."""
    size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[ours.element_size()]
    return ours.dtype == theirs.dtype and torch.equal(ours.contiguous().view(size), theirs.contiguous().view(size))


def check(x: Tensor, args: QuantizationArgs, qparams: Any, **settings: Any) -> None:
    """Quantize and dequantize with both, from the same qparams."""
    scale, zero_point = qparams
    theirs = LibraryArgs(**args.to_dict())
    code_dtype = torch.int8 if args.type == "int" else torch.float8_e4m3fn
    library_zero_point = zero_point.to(theirs.zp_dtype)
    expected = library.quantize(x, scale, library_zero_point, theirs, dtype=code_dtype, **settings)

    codes = quantize(x, scale, zero_point, args, **settings)

    assert same_bits(codes, expected)
    assert same_bits(
        dequantize(codes, scale, zero_point, args, dtype=x.dtype, **settings),
        library.dequantize(expected, scale, library_zero_point, theirs, dtype=x.dtype, **settings).to(x.dtype),
    )
    assert same_bits(
        fake_quantize(x, scale, zero_point, args, **settings),
        library.fake_quantize(x, scale, library_zero_point, theirs, **settings).to(x.dtype),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_weights_become_the_librarys_scales_codes_and_numbers(grid, dtype):
    for seed, (strategy, shape) in itertools.product(range(6), WEIGHTS):
        args = QuantizationArgs(**grid, **strategy)
        x = numbers(shape, dtype, seed)
        grouped = group(x, args)
        minimum, maximum = grouped.amin(-1), grouped.amax(-1)
        expected_scale, expected_zero_point = library_qparams(minimum, maximum, LibraryArgs(**args.to_dict()))

        scale, zero_point = calculate_qparams(minimum, maximum, args)

        assert same(scale, expected_scale)
        assert zero_point.dtype == torch.int8
        assert torch.equal(zero_point.double(), expected_zero_point.double())
        assert scale.shape == scale_shape(x.shape, args)
        check(x, args, (scale, zero_point))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_activations_become_the_librarys_scales_and_numbers(grid, dtype):
    for seed, (strategy, shape) in itertools.product(range(6), ACTIVATIONS):
        args = QuantizationArgs(**grid, **strategy)
        x = numbers(shape, dtype, seed)
        expected_scale, expected_zero_point = library_dynamic_qparams(
            x, LibraryArgs(**args.to_dict()), torch.nn.Module()
        )

        scale, zero_point = dynamic_qparams(x, args)

        assert same(scale, expected_scale)
        assert torch.equal(zero_point.double(), expected_zero_point.double())
        check(x, args, (scale, zero_point))


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("global_dtype", [torch.float32, None], ids=str)
def test_two_level_scales_become_the_librarys(dtype, global_dtype):
    for seed in range(20):
        args = QuantizationArgs(
            num_bits=4, type="float", strategy="tensor_group", group_size=4, scale_dtype=torch.float8_e4m3fn
        )
        x = numbers((6, 12), dtype, seed)
        grouped = group(x, args)
        minimum, maximum = grouped.amin(-1), grouped.amax(-1)
        global_scale = (448.0 * 6.0 / x.double().abs().max()).clamp(max=6e4).to(global_dtype or dtype).reshape(1)
        expected, _ = library_qparams(minimum, maximum, LibraryArgs(**args.to_dict()), global_scale=global_scale)

        scale, zero_point = calculate_qparams(minimum, maximum, args, global_scale=global_scale)

        assert same(scale, expected)
        check(x, args, (scale, zero_point), global_scale=global_scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("grid", MICROSCALED, ids=lambda grid: f"MXFP{grid['num_bits']}")
def test_powers_of_two_become_the_librarys(grid, dtype):
    args = QuantizationArgs(**grid)
    for seed in range(20):
        x = numbers((40, 64), dtype, seed)
        grouped = group(x, args)
        minimum, maximum = grouped.amin(-1), grouped.amax(-1)
        expected, _ = library_qparams(minimum, maximum, LibraryArgs(**args.to_dict()))

        scale, zero_point = calculate_qparams(minimum, maximum, args)

        assert same(scale, expected)
        check(x, args, (scale, zero_point))
        assert same(decode_exponents(encode_exponents(scale)).to(dtype), scale)
        assert torch.equal(encode_exponents(scale), compress_mx_scale(scale, torch.uint8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("grid", MICROSCALED, ids=lambda grid: f"MXFP{grid['num_bits']}")
def test_a_power_of_two_is_the_librarys_at_every_edge(grid, dtype):
    args = QuantizationArgs(**grid)
    edges = torch.tensor([1.0, 1.5, 1.75, 1.875, 1.9375, 1.96875], dtype=torch.float64)
    exponents = torch.arange(-14, 15, dtype=torch.float64)
    largest = (edges[:, None] * 2**exponents).to(dtype).flatten()
    largest = torch.cat([largest, torch.nextafter(largest, torch.zeros_like(largest))])
    expected, _ = library_qparams(-largest, largest / 2, LibraryArgs(**args.to_dict()))

    scale, _ = calculate_qparams(-largest, largest / 2, args)

    assert same(scale, expected)


def test_the_global_scale_is_the_librarys():
    args = QuantizationArgs(num_bits=4, type="float", strategy="tensor_group", group_size=16, scale_dtype=FP8)
    for largest in (1.0, 0.3, 1e-30, 1e-45, 0.0, 6e4):
        end = torch.tensor(largest)

        assert same(calculate_global_scale(end, args), generate_gparam(-end, end))


@pytest.mark.parametrize(("bits", "pack"), [(4, pack_fp4_to_uint8), (6, pack_fp6_to_uint8)])
def test_narrow_floats_are_packed_as_the_library_packs_them(bits, pack):
    grid = number_format(QuantizationArgs(num_bits=bits, type="float"))
    for seed, dtype in itertools.product(range(5), DTYPES[:3]):
        codes = grid.round(numbers((7, 24), dtype, seed))
        codes.view(-1)[:2] = torch.tensor([0.0, -0.0])

        packed = pack_floats(grid.encode(codes), grid)

        assert torch.equal(packed, pack(codes))
        assert same_bits(unpack_floats(packed, grid), grid.encode(codes))


def test_every_number_of_a_narrow_grid_has_its_own_bits():
    for bits in (4, 6):
        grid = number_format(QuantizationArgs(num_bits=bits, type="float"))
        packed = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, -1)

        assert torch.equal(pack_floats(unpack_floats(packed, grid), grid), packed)


def test_columns_that_do_not_fill_bytes_are_refused():
    grid = number_format(QuantizationArgs(num_bits=6, type="float"))

    with pytest.raises(ValueError, match="6 columns of float6 do not fill whole bytes; 4 do"):
        pack_floats(torch.zeros(2, 6), grid)
    with pytest.raises(ValueError, match="rows of 3 bytes or a multiple"):
        unpack_floats(torch.zeros(2, 4, dtype=torch.uint8), grid)


def test_groups_of_two_levels_need_their_global_scale():
    args = QuantizationArgs(num_bits=4, type="float", strategy="tensor_group", group_size=16, scale_dtype=FP8)

    with pytest.raises(SchemeError, match="this method sets no global scale"):
        calculate_qparams(torch.zeros(1), torch.ones(1), args)


@given(
    seed=st.integers(0, 10**9),
    rows=st.integers(1, 9),
    groups=st.integers(1, 4),
    size=st.integers(1, 9),
    grid=st.sampled_from(GRIDS),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=300, deadline=None)
def test_any_shape_of_groups_is_as_the_library_has_it(seed, rows, groups, size, grid, dtype):
    args = QuantizationArgs(**grid, group_size=size)
    x = numbers((rows, groups * size), dtype, seed)
    grouped = group(x, args)
    minimum, maximum = grouped.amin(-1), grouped.amax(-1)
    expected_scale, expected_zero_point = library_qparams(minimum, maximum, LibraryArgs(**args.to_dict()))

    scale, zero_point = calculate_qparams(minimum, maximum, args)

    assert same(scale, expected_scale)
    assert torch.equal(zero_point.double(), expected_zero_point.double())
    check(x, args, (scale, zero_point))


@pytest.mark.parametrize("grid", [{"num_bits": 8}, {"num_bits": 8, "type": "float"}], ids=str)
def test_static_inputs_share_one_scale_whatever_their_shape(grid):
    args = QuantizationArgs(**grid)
    x = numbers((2, 5, 12), torch.bfloat16, 0)

    check(x, args, calculate_qparams(x.amin().reshape(1), x.amax().reshape(1), args))


def test_a_token_of_a_matrix_has_its_own_scale_where_the_library_takes_the_whole_matrix():
    args = QuantizationArgs(strategy="token", dynamic=True)
    x = numbers((5, 12), torch.float32, 0)

    scale, _ = dynamic_qparams(x, args)

    assert scale.shape == (5, 1)
    assert torch.equal(scale, dynamic_qparams(x.unsqueeze(0), args)[0].squeeze(0))
    assert library_dynamic_qparams(x, LibraryArgs(**args.to_dict()), torch.nn.Module())[0].shape == (1,)


@pytest.mark.parametrize(("strategy", "shape"), WEIGHTS, ids=str)
def test_grouped_numbers_are_faked_as_the_whole_is(strategy, shape):
    args = QuantizationArgs(num_bits=4, symmetric=False, **strategy)
    x = numbers(shape, torch.bfloat16, 1)
    grouped = group(x, args)
    scale, zero_point = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)

    faked = fake_quantize_groups(grouped, scale, zero_point, args)

    assert same(faked, group(fake_quantize(x, scale, zero_point, args), args)) or args.strategy == "block"
    if args.strategy == "block":  # what fills the last blocks is no weight, and may become other than zero
        whole = group(torch.ones_like(x), args).bool()
        assert torch.equal(faked[whole], group(fake_quantize(x, scale, zero_point, args), args)[whole])
