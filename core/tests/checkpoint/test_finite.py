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
