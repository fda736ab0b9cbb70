"""Sizes in words."""

import re
from typing import Any

from coldpress.plugin import SchemeError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def in_bytes(value: Any) -> int:
    """Bytes of `3000000000`, `"3GB"` or `"2.5 GiB"`.

    Raises:
        SchemeError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Z]*)\s*", str(value).upper())
    size = int(float(match[1]) * _UNITS.get(match[2], 0)) if match else 0
    if isinstance(value, bool) or size < 1:
        raise SchemeError(f"target_size is {value!r}; give a number of bytes, or a size such as '3GB' or '800MB'")
    return size
