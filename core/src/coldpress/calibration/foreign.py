"""Where another library reads something of the user's: what it throws becomes an error that names the data."""

from collections.abc import Iterator
from contextlib import contextmanager

from coldpress.errors import CalibrationError, ColdpressError


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn what is raised inside into a CalibrationError.

    Args:
        what: is read and where, the beginning of the message.

    Raises:
        CalibrationError: something else than a `ColdpressError` was raised.
    """
    try:
        yield
    except (ColdpressError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of libraries in Rust
            raise
        cause = error.__cause__ or error
        said = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
        raise CalibrationError(f"{what}: {type(cause).__name__}{': ' if said else ''}{said}") from error
