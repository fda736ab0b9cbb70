"""Rounding to a grid, held against a float64 search over the whole grid."""

import itertools
from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import Tensor

from coldpress.errors import BrokenPluginError, SchemeError
from coldpress.schemes import FloatFormat, NumberFormat, QuantizationArgs, number_format
from coldpress.schemes.number_format import BUILT_IN, _from_plugin

FLOAT5 = FloatFormat(
    name="float5",
    num_bits=5,
    minimum=-7.0,
    maximum=7.0,
    code_dtype=torch.float8_e4m3fn,
    exponent_bits=2,
    mantissa_bits=2,
)
FORMATS = [*BUILT_IN.values(), FLOAT5]


def grid_of(fmt: NumberFormat) -> Tensor:
    """Every number of the grid, ascending, float64; the position of a positive one is its code."""
    if not isinstance(fmt, FloatFormat):
        return torch.arange(fmt.minimum, fmt.maximum + 1, dtype=torch.float64)
    bias = 2 ** (fmt.exponent_bits - 1) - 1
    one = 2**fmt.mantissa_bits
    codes = itertools.product(range(2**fmt.exponent_bits), range(one))
    sizes = [m / one * 2.0 ** (1 - bias) if e == 0 else (1 + m / one) * 2.0 ** (e - bias) for e, m in codes]
    positive = torch.tensor([size for size in sizes if size <= fmt.maximum], dtype=torch.float64)
    return torch.cat([-positive[1:].flip(0), positive])


def nearest(x: Tensor, fmt: NumberFormat) -> Tensor:
    """The nearest number of the grid by looking at all of them; of two as near, the one with the even code."""
    grid = grid_of(fmt)  # [N]
    zero = int((grid == 0).nonzero())
    away = (x.double().unsqueeze(-1) - grid).abs()  # [*x, N]
    odd = (torch.arange(len(grid)) - zero) % 2  # [N]
    best = away.amin(-1, keepdim=True)
    return grid[torch.where(away == best, odd, 2).argmin(-1)]


def interesting(fmt: NumberFormat) -> Tensor:
    """Every number, every tie and the neighbours of both, and what lies beyond the ends; float64."""
    grid = grid_of(fmt)
    points = torch.cat([grid, (grid[1:] + grid[:-1]) / 2, torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30])])
    return torch.cat([points, points * (1 + 2**-7), points * (1 - 2**-7)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_rounding_finds_the_nearest_number_at_every_tie_and_limit(fmt, dtype):
    x = interesting(fmt).clamp(-6e4, 6e4).to(dtype)

    rounded = fmt.round(x)

    assert rounded.dtype == dtype
    assert torch.equal(rounded.double(), nearest(x, fmt))


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_codes_hold_the_rounded_numbers(fmt):
    x = interesting(fmt).float()

    codes = fmt.encode(x)

    assert codes.dtype == fmt.code_dtype
    assert torch.equal(codes.float(), fmt.round(x))


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_spacing_is_the_distance_of_the_neighbours_on_the_grid(fmt):
    grid = grid_of(fmt).float()
    between = (grid[1:] + grid[:-1]) / 2

    assert torch.equal(fmt.spacing(between), grid[1:] - grid[:-1])
    assert bool((fmt.spacing(torch.tensor([0.0, 1e6, -1e6])) > 0).all())


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_rounding_leaves_its_input_alone(fmt):
    x = torch.tensor([0.3, -1e9])

    fmt.round(x)

    assert x.tolist() == torch.tensor([0.3, -1e9]).tolist()


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    _from_plugin.cache_clear()
    points = [
        EntryPoint("float5", f"{__name__}:FLOAT5", "coldpress.number_formats"),
        EntryPoint("int1", f"{__name__}:nearest", "coldpress.number_formats"),
    ]
    monkeypatch.setattr(
        "coldpress.registry.entry_points", lambda group: points if group.endswith("number_formats") else []
    )
    yield
    _from_plugin.cache_clear()


def test_a_plugin_offers_another_format(entry):
    assert number_format(QuantizationArgs(num_bits=5, type="float")).maximum == 7.0


def test_a_plugin_that_offers_something_else_is_named(entry):
    with pytest.raises(BrokenPluginError, match="'int1' is a function, not a NumberFormat"):
        number_format(QuantizationArgs(num_bits=1))


def test_an_unknown_format_is_answered_with_the_known_ones(entry):
    with pytest.raises(SchemeError, match="no number format is called 'float3'; did you mean .* int2, .*float5"):
        number_format(QuantizationArgs(num_bits=3, type="float"))
