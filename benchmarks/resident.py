"""What the system says of this process's memory."""

import re
from pathlib import Path

_STATUS = re.compile(r"^(VmHWM|VmRSS|RssFile|RssAnon):\s+(\d+) kB", re.MULTILINE)


def status() -> dict[str, int]:
    """Bytes that are resident now, of files and not, and the most that ever were (VmHWM)."""
    return {name: int(size) * 1024 for name, size in _STATUS.findall(Path("/proc/self/status").read_text())}
