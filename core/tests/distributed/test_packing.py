"""Any value travels bit for bit."""

import pytest
import torch
from attrs import frozen
from torch import nn

from coldpress.distributed.packing import pack, unpack

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.int64, torch.uint8, torch.bool)


@frozen(eq=False)
class Held:
    x: torch.Tensor
    name: str


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (0, 4)])
def test_tensors_of_every_dtype_and_shape(dtype, shape):
    x = (torch.randn(shape) * 3).to(dtype)

    found = unpack(pack(x), CPU)

    assert (found.dtype, found.shape) == (x.dtype, x.shape)
    assert torch.equal(found.contiguous().reshape(-1).view(torch.uint8), x.reshape(-1).view(torch.uint8))


def test_bits_that_are_no_numbers_stay():
    x = torch.tensor([0x7FC00001, -1, 0], dtype=torch.int32).view(torch.float32)  # NaNs with a payload

    assert torch.equal(unpack(pack(x), CPU).view(torch.int32), x.view(torch.int32))


def test_strides_stay_because_kernels_depend_on_them():
    whole = torch.arange(24.0).view(4, 6)
    for x in (whole.t(), whole[:, 1:4], torch.ones(3, 1).expand(3, 5), whole[::2]):
        found = unpack(pack(x), CPU)

        assert torch.equal(found, x)
        assert found.stride() == x.stride()


def test_what_is_shared_stays_shared_and_classes_come_along():
    x = torch.randn(3)

    held, again, meta, parameter = unpack(
        pack([Held(x, "x"), x, torch.empty(2, 3, device="meta"), nn.Parameter(x)]), CPU
    )

    assert held.x is again
    assert held.name == "x"
    assert meta.is_meta
    assert meta.shape == (2, 3)
    assert isinstance(parameter, nn.Parameter)
