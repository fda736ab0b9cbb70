"""Bounds of time and memory for what a file makes Python do."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from coldpress.errors import CalibrationError


@contextmanager
def bounded(seconds: float, what: str) -> Iterator[None]:
    """Stop what a file makes Python do, a template for example, if it takes too long; in the main thread, where no
    other alarm is due before, and nowhere else.

    Args:
        seconds: that it may take.
        what: is done and where, the beginning of the message.

    Raises:
        CalibrationError: it took longer.
    """

    def stop(*_: object) -> None:
        raise CalibrationError(f"{what} for more than {seconds:g} s")

    free = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if not free or 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= seconds:
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    start, (due, interval) = perf_counter(), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if due:  # another's alarm, when it would have come
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, due - (perf_counter() - start)), interval)


@contextmanager
def bounded_memory(size: int, what: str) -> Iterator[None]:
    """Let what a file makes Python do take so many bytes more than the process has, on Linux and in the main thread.

    Args:
        size: bytes of address space.
        what: is done and where, the beginning of the message.

    Raises:
        CalibrationError: it took more.
    """
    statistics = Path("/proc/self/statm")  # pages of address space, the first of seven numbers
    if threading.current_thread() is not threading.main_thread() or not statistics.exists():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = int(statistics.read_text().split()[0]) * resource.getpagesize() + size
    if soft == resource.RLIM_INFINITY or most < soft:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    except MemoryError as error:
        raise CalibrationError(f"{what} in more than {size >> 20} MB of memory") from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
