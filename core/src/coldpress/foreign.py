"""Where another library reads something of the user's: what it throws becomes an error that names what was read."""

from collections.abc import Iterator
from contextlib import contextmanager

from coldpress.errors import CalibrationError, ColdpressError


@contextmanager
def reading(what: str, error: type[ColdpressError] = CalibrationError) -> Iterator[None]:
    """Turn what is raised inside into one of our errors.

    Args:
        what: is read and where, the beginning of the message.
        error: the kind of error.

    Raises:
        ColdpressError: of this kind, if something else than a `ColdpressError` was raised.
    """
    try:
        yield
    except (ColdpressError, MemoryError):
        raise
    except BaseException as found:
        if not isinstance(found, Exception) and type(found).__name__ != "PanicException":  # of libraries in Rust
            raise
        cause = found.__cause__ or found
        message = " ".join(line.strip() for line in str(cause).splitlines() if line.strip())[:400]
        raise error(f"{what}: {type(cause).__name__}{': ' if message else ''}{message}") from found
