import pytest
import torch

from coldpress.errors import NumericsError
from coldpress.numerics import check_finite

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8, torch.bool])
def test_finite_tensors_pass(dtype):
    check_finite("w", torch.ones(3, 4).to(dtype))
    check_finite("w", torch.ones(0, 4).to(dtype))
    if dtype.is_floating_point and dtype.itemsize > 1:
        check_finite("w", torch.full((8,), torch.finfo(dtype).max, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_nan_is_counted_and_named(dtype):
    tensor = torch.ones(3, 4)
    tensor[1, 2] = float("nan")

    with pytest.raises(NumericsError, match=r"'model\.w' holds 1 NaN among its 12 values"):
        check_finite("model.w", tensor.to(dtype))


@pytest.mark.parametrize("dtype", FLOATS[:-1])
def test_infinities_and_nans_are_counted_apart(dtype):
    tensor = torch.tensor([1, float("inf"), -float("inf"), float("nan")], dtype=dtype)

    with pytest.raises(NumericsError, match="1 NaN and 2 Inf"):
        check_finite("w", tensor)


@pytest.mark.parametrize("size", [16, 254, 256])
def test_every_byte_of_float8_is_looked_at(size):
    numbers = torch.tensor([byte for byte in range(256) if byte & 0x7F != 0x7F] + [0, 0], dtype=torch.uint8)[-size:]

    check_finite("w", numbers.view(torch.float8_e4m3fn))
    for place in (0, 7, size - 1):
        for byte in (0x7F, 0xFF):
            damaged = numbers.clone()
            damaged[place] = byte
            with pytest.raises(NumericsError, match=f"1 NaN among its {size} values"):
                check_finite("w", damaged.view(torch.float8_e4m3fn))
