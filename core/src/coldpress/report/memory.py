"""The most memory that this process held, since a moment of one's choice where the system can tell."""

import re
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_NOW = re.compile(r"^VmRSS:\s+(\d+) kB", re.MULTILINE)
_HIGH_WATER = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


def reset_peak_memory() -> bool:
    """Begin to measure anew.

    Returns:
        Whether that is possible here; if not, `peak_memory` still means the whole life of the process.
    """
    try:
        _RESET.write_text("5", encoding="ascii")  # proc(5): resets the high-water mark of the resident set
    except OSError:
        return False
    return True


def peak_memory() -> int | None:
    """The largest resident set since the last reset, in bytes; None where the system does not say."""
    try:
        found = _HIGH_WATER.search(_STATUS.read_text(encoding="ascii"))
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else _whole_life()


def memory_now() -> int | None:
    """The resident set at this moment, in bytes; None where the system does not say."""
    try:
        found = _NOW.search(_STATUS.read_text(encoding="ascii"))
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else None


def _whole_life() -> int | None:
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
