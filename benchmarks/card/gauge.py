"""What both libraries are measured with on a card: seconds, device memory, host memory."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from resident import status


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], device: str) -> float:
    """Of some work, with what it left running on the device."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def gauged(work: Callable[[], Any], device: str) -> dict[str, float]:
    """Seconds of some work, and the peaks that it reached above what was there before, in bytes."""
    bare, held = status()["VmRSS"], 0
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    taken = seconds(work, device)
    peak = torch.cuda.max_memory_allocated() if device != "cpu" else 0
    return {"seconds": taken, "device_peak": peak - held, "device_held": held, "host_peak": status()["VmHWM"] - bare}


def token_ids(vocabulary: int, samples: int, length: int) -> list[list[int]]:
    """Random token ids, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, vocabulary, (samples, length), generator=generator).tolist()


def request() -> dict[str, Any]:
    """What this process is to do."""
    return json.loads(sys.argv[1])


def answer(found: dict[str, Any]) -> None:
    """The last line of the output is the answer."""
    print("\n" + json.dumps(found), flush=True)
