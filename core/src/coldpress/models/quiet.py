"""Silence for transformers' progress bar where there is nothing to wait for."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_bar() -> Iterator[None]:
    """Build a model from weights that are in memory already, without a bar that says so."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
