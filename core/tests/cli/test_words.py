"""Numbers and tables as people read them, and memory as the system tells it."""

from io import StringIO

import pytest
from rich.console import Console

from coldpress.report.memory import peak_memory, reset_peak_memory
from coldpress.report.table import facts
from coldpress.report.words import in_bytes, in_count, in_decimals, in_error, in_time


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (56_420_000, "56.4 MB"),
        (113e6, "113 MB"),
        (7e12, "7 TB"),
    ],
)
def test_sizes_have_three_digits(count, words):
    assert in_bytes(count) == words


@pytest.mark.parametrize(("count", "words"), [(912, "912"), (28_311, "28.3 k"), (134_515_008, "135 M")])
def test_counts_have_three_digits(count, words):
    assert in_count(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4167, "0.42 s"), (12.34, "12.3 s"), (59.97, "1 min 00 s"), (245, "4 min 05 s"), (7620, "2 h 07 min")],
)
def test_times_are_short(seconds, words):
    assert in_time(seconds) == words


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (18.4231, 0.312, "18.42 ± 0.31"),
        (0.01234, 0.00056, "0.01234 ± 0.00056"),
        (1234.5, 47, "1234 ± 47"),
        (3.14159, float("nan"), "3.142"),
        (float("inf"), float("inf"), "inf"),
    ],
)
def test_a_value_has_the_digits_that_its_error_allows(value, error, words):
    assert in_error(value, error) == words


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (34.5, 1.41, "34.5000 ± 1.4100"),
        (0.00012345, 0.0000067, "0.0001234 ± 0.0000067"),
        (3.14159, float("nan"), "3.1416"),
        (0.0001234567, 0.0, "0.0001235"),
        (0.0, 0.0, "0.0000"),
    ],
)
def test_decimals_are_enough_to_compare_runs(value, error, words):
    assert in_decimals(value, error) == words


def test_the_peak_is_no_less_than_what_was_just_held():
    reset_peak_memory()
    before = peak_memory()
    held = bytearray(64_000_000)
    held[::4096] = b"x" * len(held[::4096])

    assert peak_memory() >= before + 50_000_000 if before is not None else True


def test_long_names_leave_room_for_what_is_known_of_them():
    out = Console(width=80, file=StringIO())

    out.print(facts([("model.layers.0.mlp.down_proj, model.layers.0.mlp.gate_proj and 208 more", "reason " * 5)]))

    first, second = out.file.getvalue().splitlines()
    assert first.split() == ["model.layers.0.mlp.down_proj,", *["reason"] * 5]
    assert second.strip() == "model.layers.0.mlp.gate_proj and 208 more"
