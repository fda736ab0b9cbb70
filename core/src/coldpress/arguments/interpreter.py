"""The interpreter that a run is in."""

import sys

from coldpress.errors import ArgumentError


def check_interpreter() -> None:
    """Refuse an interpreter in which transformers does not work.

    Raises:
        ArgumentError: it has no docstrings.
    """
    if sys.flags.optimize > 1:
        raise ArgumentError(
            "python -OO (PYTHONOPTIMIZE=2) strips docstrings, which transformers needs; python -O keeps them"
        )
