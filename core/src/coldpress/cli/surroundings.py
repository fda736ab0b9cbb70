"""What a process finds around it, made such that a command can run: streams that are closed or know few characters,
warnings that raise.
"""

import atexit
import codecs
import io
import os
import sys
import threading
import warnings
from contextlib import suppress
from typing import Any

_SIGNS = {"×": "x", "…": "...", "±": "+-", "→": "->"}  # of ours, where only ASCII can be written
_PLAIN = "coldpress.plain"  # the name of `_plain`, as a handler of errors


def mend_streams() -> None:
    """Open standard streams that are closed onto nothing, and let standard error lose what cannot be written.

    What an encoding lacks is written plainly.

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
        sys.stderr = io.TextIOWrapper(raw, encoding=sys.stderr.encoding, line_buffering=True)
    codecs.register_error(_PLAIN, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_PLAIN)


def mend_warnings() -> None:
    """Let warnings of libraries be warnings, where PYTHONWARNINGS or -W makes errors of them."""
    if any(action == "error" for action, *_ in warnings.filters):
        warnings.simplefilter("default")


def leave_at_once(code: str | int | None) -> None:
    """End the process where it is one of several that torchrun started; elsewhere nothing.

    All that is to be done at its end is done here.  What is left is what C++ destroys, and there some 2 % of processes
    abort (torch 2.13: a thread of gloo that is not joined), which torchrun would take for a failure of the whole run.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """A handler of codecs: a byte of a file's name as it is, our signs in ASCII, any other character by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character, rest = error.object[error.start], error.start + 1
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), rest
    return _SIGNS.get(character) or character.encode("ascii", "backslashreplace").decode(), rest


class _Lossy(io.FileIO):
    """A file that takes everything, on a full disk and in a pipe that is closed too."""

    def write(self, content: Any, /) -> int:
        """Write what can be written, and say that all of it was."""
        try:
            return super().write(content)
        except OSError:
            return len(content)
