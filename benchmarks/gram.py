"""Ways to multiply a Gram matrix on a CPU: time, error, and whether it is positive definite, on SmolLM2's own inputs.

    python benchmarks/gram.py --write

Inputs are those of four blocks in bfloat16, 16 x 512 tokens of coldpress/short.
Seconds are the least of several repeats: on the clock, and of CPU time, which says more where others work too.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from coldpress import load_model, load_tokenizer
from coldpress.calibration import short
from coldpress.calibration.tap import InputTap
from coldpress.numerics import folded_gram, gram, unfolded
from coldpress.numerics.gram import _folded_float32
from coldpress.plugin import StopForward
from coldpress.stage import find_layers

HERE = Path(__file__).parent
LAYERS = {"q_proj": "self_attn", "o_proj": "self_attn", "gate_proj": "mlp", "down_proj": "mlp"}
SAMPLES, LENGTH, CHUNK, DAMPENING = 16, 512, 4096, 0.01


def inputs(blocks: list[int]) -> dict[str, Tensor]:
    """Layer name to its inputs, [tokens, width] bfloat16."""
    model = load_model("smollm2", dtype=torch.bfloat16)
    tokenizer = load_tokenizer("smollm2", model)
    text = "\n\n".join(row["text"] for row in short.load("calibration"))
    ids = torch.tensor(tokenizer(text)["input_ids"][: SAMPLES * LENGTH]).view(SAMPLES, LENGTH)
    names = [f"model.layers.{block}.{part}.{name}" for block in blocks for name, part in LAYERS.items()]
    layers = [layer for layer in find_layers(model.named_modules()) if layer.name in names]
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    with torch.no_grad(), InputTap(layers) as tap:
        for index, row in enumerate(ids):
            with suppress(StopForward):
                model(input_ids=row[None])
            for name, x in tap.collect(index, {}).batch().inputs.items():
                seen[name].append(x.clone())
    return {name: torch.cat(parts) for name, parts in seen.items()}


def float32(x: Tensor) -> Tensor:
    wide = x.float()
    return wide.t() @ wide


def float32_upper(x: Tensor) -> Tensor:
    return unfolded(_folded_float32(x.float()))


def bfloat16(x: Tensor) -> Tensor:
    return (x.t() @ x).float()


def bfloat16_residual(x: Tensor) -> Tensor:
    """The product, rounded, and once more what rounding left out."""
    first = x.t() @ x
    return first.float() + torch.addmm(first, x.t(), x, beta=-1).float()


def slices(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two int8 slices of numbers in steps of max / 127, and the steps."""
    scale = x.abs().amax(0).float().clamp_min(1e-20) / 127
    steps = x.float() / scale
    high = steps.round()
    return high.to(torch.int8), ((steps - high) * 254).round_().to(torch.int8), scale


def int8_one_slice(x: Tensor) -> Tensor:
    high, _, scale = slices(x)
    return torch._int_mm(high.t(), high) * scale * scale[:, None]


def int8_two_slices(x: Tensor) -> Tensor:
    """The trial of the issue: exact products high * high and high * low."""
    high, low, scale = slices(x)
    cross = torch._int_mm(high.t(), low) / 254
    return (torch._int_mm(high.t(), high) + cross + cross.t()) * scale * scale[:, None]


def int8_two_slices_upper(x: Tensor) -> Tensor:
    """The same on the upper triangle."""
    high, low, scale = slices(x)
    both, turned = torch.cat([high, low]), torch.cat([low, high])
    found = torch.empty(x.shape[1], x.shape[1])
    for start in range(0, x.shape[1], 256):
        stop = start + 256
        cross = torch._int_mm(both[:, start:stop].t(), turned[:, start:]) / 254
        found[start:stop, start:] = torch._int_mm(high[:, start:stop].t(), high[:, start:]) + cross
    found = (found * scale).mul_(scale[:, None]).triu_()
    return found + found.triu(1).t()


def ours(x: Tensor) -> Tensor:
    """What the statistic does: chunks, folded, unfolded once."""
    total, *rest = (folded_gram(part, seen=i * CHUNK) for i, part in enumerate(torch.split(x, CHUNK)))
    for part in rest:
        total = part.add_(total)
    return unfolded(total)


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": float32,
    "float32, upper triangle": float32_upper,
    "bfloat16": bfloat16,
    "bfloat16 and its residual": bfloat16_residual,
    "int8, one slice": int8_one_slice,
    "int8, two slices": int8_two_slices,
    "int8, two slices, upper triangle": int8_two_slices_upper,
    "coldpress.numerics.gram": gram,
    "the statistic gram": ours,
}


def least(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Milliseconds on the clock and of CPU time, the least of each."""
    work()
    clock, cpu = [], []
    for _ in range(repeats):
        before, used = time.perf_counter(), time.process_time()
        work()
        clock.append(time.perf_counter() - before)
        cpu.append(time.process_time() - used)
    return 1e3 * min(clock), 1e3 * min(cpu)


def quality(found: Tensor, exact: Tensor) -> dict[str, float | bool]:
    """Error and definiteness; eigenvalues in units of the mean of the diagonal."""
    size = exact.diagonal().sqrt()
    own = found.double()
    eye = torch.eye(len(own), dtype=torch.float64)
    unit = own.diagonal().sqrt()
    raw = own / own.diagonal().mean() + DAMPENING * eye
    _, info = torch.linalg.cholesky_ex(found + DAMPENING * found.diagonal().mean() * torch.eye(len(found)))
    return {
        "error": float(((own - exact) / size / size[:, None]).abs().max()),
        "smallest, unit diagonal": float(torch.linalg.eigvalsh(own / unit / unit[:, None] + DAMPENING * eye)[0]),
        "smallest, as it is": float(torch.linalg.eigvalsh(raw)[0]),
        "cholesky": not bool(info),
    }


def measure(blocks: list[int], every_block: bool, repeats: int) -> dict[str, dict[str, dict[str, float | bool]]]:
    """Way to layer to numbers."""
    found: dict[str, dict[str, dict[str, float | bool]]] = {way: {} for way in WAYS}
    for name, x in inputs(list(range(30)) if every_block else blocks).items():
        exact = x.double().t() @ x.double()
        timed = int(name.split(".")[2]) in blocks
        for way, work in WAYS.items():
            if not timed and work is not ours:
                continue
            numbers = quality(work(x), exact)
            if timed:
                numbers["ms"], numbers["cpu ms"] = least(lambda work=work, x=x: work(x), repeats)
            found[way][name] = numbers
        print(name, {k: f"{v:.2e}" for k, v in found["the statistic gram"][name].items()}, file=sys.stderr)
    return found


def table(found: dict[str, dict[str, dict[str, float | bool]]], kind: str) -> list[str]:
    """Markdown rows of one kind of layer: the worst number over blocks, the mean of times."""
    lines = []
    for way, layers in found.items():
        rows = [numbers for name, numbers in layers.items() if name.endswith(kind)]
        timed = [row for row in rows if "ms" in row]
        ms, cpu = (sum(row[key] for row in timed) / len(timed) for key in ("ms", "cpu ms"))
        unit, raw = (min(row[f"smallest, {which}"] for row in rows) for which in ("unit diagonal", "as it is"))
        sound = "yes" if all(row["cholesky"] for row in rows) else "**no**"
        error = max(row["error"] for row in rows)
        lines.append(f"| {way} | {ms:.1f} | {cpu:.1f} | {error:.1e} | {unit:.1e} | {raw:.1e} | {sound} |")
    return lines


def report(found: dict[str, dict[str, dict[str, float | bool]]], machine: dict[str, object]) -> str:
    """The page of results."""
    lines = ["# Gram matrices on a CPU", "", f"`{machine['command']}`", ""]
    lines += [f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}; load before and after "]
    lines += [f"{machine['load before']:.1f} and {machine['load after']:.1f} (2 is a machine with no other load)."]
    lines += [
        "",
        f"SmolLM2-135M in bfloat16, {SAMPLES} x {LENGTH} tokens, blocks {machine['blocks']}: means of times (least of "
        f"{machine['repeats']}), worst of the rest.",
        "The statistic gram is the worst of all 30 blocks." if machine["every block"] else "",
        "Error: largest after scaling to a unit diagonal.  Eigenvalues: the smallest after dampening of 0.01, with a "
        "unit diagonal, and as it is in units of the mean diagonal.  Cholesky: of the matrix as it is, in float32.",
    ]
    for kind in LAYERS:
        lines += ["", f"## {kind}", "", "| way | ms | CPU ms | error | unit diagonal | as it is | Cholesky |"]
        lines += ["|---|--:|--:|--:|--:|--:|---|", *table(found, kind)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 1, 15, 29])
    parser.add_argument("--every-block", action="store_true", help="look at the statistic in all blocks")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/gram.md and .json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine: dict[str, object] = {
        "command": " ".join(["python", "benchmarks/gram.py", *sys.argv[1:]]),
        "processor": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": options.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "blocks": options.blocks,
        "every block": options.every_block,
        "repeats": options.repeats,
        "load before": os.getloadavg()[0],
    }
    found = measure(options.blocks, options.every_block, options.repeats)
    machine["load after"] = os.getloadavg()[0]
    page = report(found, machine)
    print(page)
    if options.write:
        (HERE / "results" / "gram.md").write_text(page)
        (HERE / "results" / "gram.json").write_text(json.dumps({"machine": machine, "ways": found}, indent=1) + "\n")


def processor() -> str:
    """The processor's name, where the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
