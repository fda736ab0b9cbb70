"""One measured compression in a process of its own: what `ours.py` and `peer.py` share.

The process reads a request, a JSON file, and answers with another one beside it.
It times its imports, the loading of the model and the compression apart, and notes the peak of its memory before
anything is written to disk; then the weights that the compression left in memory are stored for the evaluator.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def peak_megabytes() -> float:
    """The largest resident set of this process so far; compare.py, whose child it is, holds next to nothing."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e6 / 1024), 1)


def machine_seconds() -> float | None:
    """CPU seconds that all processes of this machine have used; None where the system does not say."""
    try:
        user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text(encoding="ascii").split()[1:]
    except OSError:
        return None
    return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")


def measure(
    started: float,
    load: Callable[[dict[str, Any]], Any],
    compress: Callable[[dict[str, Any], Any], Any],
    dense: Callable[[Any, str], Any],
) -> None:
    """Load, compress, store, and write the numbers down.

    Args:
        started: `time.perf_counter()` before the first import.
        load: makes the model, and what else is needed, of the request.
        compress: changes what `load` made, and returns the model.  Nothing but this is the time of the compression.
        dense: the weights that a layer of the model computes with, by the name of the parameter.
    """
    import torch
    from transformers import set_seed

    imported = time.perf_counter()
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    set_seed(request["seed"])
    loaded = load(request)
    known = {name for name, _ in loaded[0].named_parameters(remove_duplicate=False)}
    before, average, machine = peak_megabytes(), os.getloadavg()[0], machine_seconds()
    ready, busy = time.perf_counter(), time.process_time()
    model = compress(request, loaded)
    seconds, peak = time.perf_counter() - ready, peak_megabytes()
    cpu_seconds, done = time.process_time() - busy, time.perf_counter()
    others = None if machine is None else machine_seconds() - machine - cpu_seconds
    names = [name for name, _ in model.named_parameters() if name in known]  # a tied head is named once
    with torch.no_grad():
        weights = {name: dense(model, name) for name in names}
    answer = {
        "compress_seconds": round(seconds, 3),
        "compress_cpu_seconds": round(cpu_seconds, 3),
        "others_cpu_seconds": None if others is None else round(max(0.0, others), 2),
        "dense_seconds": round(time.perf_counter() - done, 3),
        "import_seconds": round(imported - started, 3),
        "load_seconds": round(ready - imported, 3),
        "loaded_megabytes": before,
        "peak_megabytes": peak,
        "load_average_before": round(average, 2),
        "threads": torch.get_num_threads(),
    }
    store(weights, Path(request["weights"]))
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def store(weights: Mapping[str, Any], path: Path) -> None:
    """The weights as a safetensors file."""
    from safetensors.torch import save_file

    save_file({name: weight.detach().cpu().clone().contiguous() for name, weight in weights.items()}, path)
