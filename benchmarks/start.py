"""How long commands take to start: help, inspect, plan, and `compress` until its first stage begins.

    python benchmarks/start.py --write

Wall-clock and CPU seconds of whole processes, medians of five after one that warms the disk; it wants a quiet machine.
`compress` is timed until the line of its first stage, less the seconds that the stage took; its imports are those that
`python -X importtime` sees, of torch, of transformers, and of all else.
"""

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from coldpress.testing.models import tiny_llama, tiny_tokenizer

RESULTS = Path(__file__).parent / "results"
COLDPRESS = [sys.executable, "-m", "coldpress"]
SCHEME = ["smollm2", "--scheme", "W4A16", "--algorithm", "gptq", "--group-size", "64"]
DATA = ["--num-calibration-samples", "4", "--max-seq-length", "128"]
LIBRARIES = ("torch", "transformers")


def whole(command: list[str]) -> dict[str, float]:
    """Seconds of a process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - start, "cpu": cpu}


def first_stage(folder: Path) -> dict[str, float]:
    """Seconds of `compress` until its first stage begins."""
    out = folder / f"out-{time.monotonic_ns()}"
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [*COLDPRESS, "compress", *SCHEME, *DATA, "--output", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    until = next(time.perf_counter() - start for line in process.stderr if re.search(r"\(1 of \d+\)", line))
    process.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    stage = json.loads((out / "report.json").read_text())["stages"][0]["seconds"]
    return {"seconds": until - stage, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def imports(folder: Path) -> dict[str, float]:
    """Seconds of the imports of a `compress`, by library; each module counts once, without what it imports."""
    command = [sys.executable, "-X", "importtime", "-m", "coldpress", "compress", *SCHEME, *DATA]
    run = subprocess.run([*command, "--output", str(folder / "imports")], check=True, capture_output=True, text=True)
    found = dict.fromkeys([*LIBRARIES, "coldpress", "others"], 0.0)
    for line in run.stderr.splitlines():
        if match := re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", line):
            top = match[2].partition(".")[0]
            name = "coldpress" if top.startswith("coldpress") else top if top in LIBRARIES else "others"
            found[name] += int(match[1]) / 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write results/start.{md,json}")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        tiny_llama().save_pretrained(folder / "tiny")
        tiny_tokenizer().save_pretrained(folder / "tiny")
        commands = {
            "python, nothing imported": lambda: whole([sys.executable, "-c", ""]),
            "import torch": lambda: whole([sys.executable, "-c", "import torch"]),
            "coldpress --help": lambda: whole([*COLDPRESS, "--help"]),
            "coldpress compress --help": lambda: whole([*COLDPRESS, "compress", "--help"]),
            "coldpress inspect tiny": lambda: whole([*COLDPRESS, "inspect", str(folder / "tiny")]),
            "coldpress plan smollm2 ...": lambda: whole([*COLDPRESS, "plan", *SCHEME, *DATA]),
            "coldpress compress smollm2 ..., first stage": lambda: first_stage(folder),
        }
        for words, run in commands.items():
            run()
            runs = [run() for _ in range(options.repeats)]
            found[words] = {key: statistics.median(one[key] for one in runs) for key in runs[0]}
            print(words, found[words], file=sys.stderr, flush=True)
        parts = imports(folder)
    rows = [f"| `{words}` | {one['seconds']:.2f} | {one['cpu']:.2f} |" for words, one in found.items()]
    text = (
        f"# Start\n\n`python benchmarks/start.py --write` on {date.today()}: torch {torch.__version__}, "
        f"Python {sys.version.split()[0]}.\n\n| | seconds | CPU seconds |\n|---|--:|--:|\n" + "\n".join(rows)
    )
    text += "\n\nCPU seconds of the last line are those of the whole run.\nImports of `compress`, in seconds: "
    text += ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items()) + ".\n"
    print(text)
    if options.write:
        (RESULTS / "start.md").write_text(text)
        (RESULTS / "start.json").write_text(json.dumps({"commands": found, "imports": parts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
