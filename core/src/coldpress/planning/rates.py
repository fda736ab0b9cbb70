"""What this machine does in a second, measured in a quarter of one: products, and passes over memory."""

from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from time import perf_counter

import torch
from attrs import frozen

_TOKENS, _WIDTH = 512, 1024  # of the products: the shape of a small layer
_GROUPS, _GROUP = 1 << 15, 64
_PIECE = 1 << 21
_SECONDS = 0.06  # that one rate is measured for; there are four, and one of hashing
_IN_STEP, _FEW = 3, 64  # operations that cost the call alone, and their numbers


@frozen
class Rates:
    """Rates of one machine.

    Attributes:
        products: operations a second of products in the dtype of the model.
        wide_products: the same in float32.
        passes: bytes a second that operations on every number go over, which are seldom as fast as a copy.
        steps: operations a second on so few numbers that they cost the call alone.
        disk: bytes a second that are written and hashed, as far as hashing bounds it.
        device: where products were measured.
        threads: of the CPU.
        network: bytes a second that a rank receives from others; a guess where no profile of the machine says it.
    """

    products: float
    wide_products: float
    passes: float
    steps: float
    disk: float
    device: str
    threads: int
    network: float = 1e9


@lru_cache
def measured_rates(dtype: torch.dtype, device: torch.device) -> Rates:
    """Measure once in a process, for a dtype and a device."""
    flops = 2.0 * _TOKENS * _WIDTH * _WIDTH
    return Rates(
        products=flops / _time(_product(dtype, device), device),
        wide_products=flops / _time(_product(torch.float32, device), device),
        passes=_GROUPS * _GROUP * 4 / _time(_pass(device), device),
        steps=_IN_STEP / _time(_step(device), device),
        disk=_PIECE / _time(_hash(), torch.device("cpu")),
        device=device.type,
        threads=torch.get_num_threads(),
    )


def _product(dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TOKENS, _WIDTH, generator=generator).to(device, dtype)
    w = torch.randn(_WIDTH, _WIDTH, generator=generator).to(device, dtype)
    return lambda: x @ w.t()


def _pass(device: torch.device) -> Callable[[], object]:
    x = torch.ones(_GROUPS, _GROUP, device=device)
    return lambda: x.amin(1)


def _step(device: torch.device) -> Callable[[], object]:
    x = torch.ones(_IN_STEP, _FEW, device=device)
    return lambda: x[1] + x[2]  # two views and a sum


def _hash() -> Callable[[], object]:
    data = bytes(_PIECE)
    return lambda: sha256(data).digest()


def _time(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run, the mean of as many as fit into the time; the first one, which warms up, is left out."""
    run()
    _wait(device)
    start, count = perf_counter(), 0
    while perf_counter() - start < _SECONDS and count < 1000:
        run()
        count += 1
        _wait(device)
    return max((perf_counter() - start) / count, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
