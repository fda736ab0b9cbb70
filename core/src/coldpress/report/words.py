"""Numbers as people read them."""

from collections.abc import Iterable
from html import escape
from math import inf


def in_bytes(count: float | None) -> str:
    """Three digits and a decimal unit: `113 MB`; a dash for None."""
    return "-" if count is None else _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def in_time(seconds: float) -> str:
    """`0.42 s`, `12.3 s`, `4 min 05 s` or `2 h 07 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 9.995 else f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def in_count(count: int) -> str:
    """`912`, `28.3 k`, `135 M`, `8.03 G`."""
    return _scaled(count, ("", "k", "M", "G", "T")).rstrip()


def in_error(value: float, error: float, *, digits: int = 2) -> str:
    """A value with its standard error, `18.42 ± 0.31`; the error has so many digits, and the value no further ones."""
    if not 0 < error < inf:
        return f"{value:.4g}"
    places = max(0, digits - 1 - _exponent(error))
    return f"{value:.{places}f} ± {error:.{places}f}"


def in_decimals(value: float, error: float) -> str:
    """A value with its standard error, `18.4213 ± 0.3127`: four decimals, more where the error has none of them yet."""
    if not 0 < error < inf:
        return f"{value:.4f}" if abs(value) >= 1e-3 or not value else f"{value:.4g}"
    places = max(4, 1 - _exponent(error))
    return f"{value:.{places}f} ± {error:.{places}f}"


def html_table(facts: Iterable[tuple[str, str]]) -> str:
    """Names and what is known of them, for notebooks."""
    rows = (f"<tr><th>{escape(name)}</th><td>{escape(words)}</td></tr>" for name, words in facts)
    return f"<table>{''.join(rows)}</table>"


def _exponent(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """Three digits and the unit that makes the number small, each unit a thousand of the one before."""
    step = 0
    while value >= 999.5 and step < len(units) - 1:
        value, step = value / 1000, step + 1
    whole = step == 0 or value >= 99.95
    return f"{value:.0f} {units[step]}" if whole else f"{value:.3g} {units[step]}"
