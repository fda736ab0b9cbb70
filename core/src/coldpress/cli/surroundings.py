"""What a process finds around it, made such that a command can run: streams that are closed, warnings that raise."""

import io
import os
import sys
import warnings
from typing import Any


def mend_streams() -> None:
    """Open standard streams that are closed onto nothing, and let standard error lose what cannot be written.

    Without that, a file that a run opens takes the number of a closed stream, and gets its messages.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null == number:
                os.set_inheritable(number, True)
            else:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
    own = sys.stderr is sys.__stderr__  # a program that calls `main` may have put its own in place, without a number
    if own and not sys.stderr.isatty() and isinstance(sys.stderr, io.TextIOWrapper):
        raw = io.BufferedWriter(_Lossy(sys.stderr.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, encoding=sys.stderr.encoding, errors="backslashreplace", line_buffering=True)


def mend_warnings() -> None:
    """Let warnings of libraries be warnings, where PYTHONWARNINGS or -W makes errors of them."""
    if any(action == "error" for action, *_ in warnings.filters):
        warnings.simplefilter("default")


class _Lossy(io.FileIO):
    """A file that takes everything, on a full disk and in a pipe that is closed too."""

    def write(self, content: Any, /) -> int:
        """Write what can be written, and say that all of it was."""
        try:
            return super().write(content)
        except OSError:
            return len(content)
