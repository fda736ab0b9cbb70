"""GPTQ's solver alone, on layers of models that are too large to be here: seconds of each step, and what saves some.

    python benchmarks/solver.py --write             experts that are solved together, and one by one
    python benchmarks/solver.py dense --write       layers of the shape of Llama-3-8B

Weights are random, inputs are correlated and differ in size from channel to channel; symmetric int4, groups of 128.
On a GPU, where there is Triton, its kernel stands beside the loop in torch.
Seconds are the least of the repeats.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gram import processor
from torch import Tensor

from coldpress import QuantizationArgs
from coldpress_gptq.algorithm import solver
from coldpress_gptq.algorithm.solver import Problem, gptq, prepare, searched_qparams
from coldpress_gptq.algorithm.steps import Steps

HERE = Path(__file__).parent
ARGS = QuantizationArgs(num_bits=4, group_size=128)
EXPERTS = {"Qwen3-30B-A3B, gate and up": (16, 1536, 2048), "Qwen3-30B-A3B, down": (16, 2048, 768)}
"""Name to how many, their rows, and their columns; of 128 experts, 16."""
DENSE = {"o": (4096, 4096), "q, k and v": (6144, 4096), "gate and up": (28672, 4096), "down": (4096, 14336)}
"""Name of layers of Llama-3-8B that read one input to their rows and columns."""


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(run: Callable[[], Any], device: str, repeats: int) -> float:
    """The least of some runs."""
    found = []
    for _ in range(repeats):
        start = clock(device)
        run()
        found.append(clock(device) - start)
    return min(found)


def gram_of(width: int, *, seed: int, device: str) -> Tensor:
    """The Gram matrix of inputs: an eighth of their width in rank, and noise; sizes of channels differ."""
    generator = torch.Generator(device).manual_seed(seed)
    signal, mixing, noise = (
        torch.randn(*shape, generator=generator, device=device)
        for shape in ((2 * width, width // 8), (width // 8, width), (2 * width, width))
    )
    x = signal @ mixing * (width // 8) ** -0.5 + noise / 2
    x *= torch.linspace(0.2, 3, width, device=device)[torch.randperm(width, generator=generator, device=device)]
    return x.t() @ x


def problem(rows: int, columns: int, *, seed: int, device: str) -> Problem:
    """One layer and its input, ready for the solver."""
    generator = torch.Generator(device).manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, device=device).mul_(columns**-0.5).bfloat16()
    prepared = prepare(gram_of(columns, seed=seed + 1, device=device), dampening_frac=0.01, by_activity=True)
    return Problem([weight], [searched_qparams(weight, ARGS, prepared.importance)], prepared)


def experts(device: str, repeats: int) -> list[dict[str, Any]]:
    """Experts, each with an input of its own, one by one and in batches."""
    rows = []
    for name, (count, out, width) in EXPERTS.items():
        problems = [problem(out, width, seed=2 * index, device=device) for index in range(count)]

        def solve(size: int, problems: list[Problem] = problems) -> list[Tensor]:
            parts = (problems[start : start + size] for start in range(0, len(problems), size))
            return [
                solution.codes for part in parts for (solution,) in gptq(part, ARGS, block_size=128, keep_zeros=False)
            ]

        alone = solve(1)
        for size in (1, 2, 4, 8, 16):
            found = solve(size)
            other = sum(int((a != b).sum()) for a, b in zip(alone, found, strict=True)) / sum(a.numel() for a in alone)
            spent = seconds(lambda size=size: solve(size), device, repeats)  # type: ignore[misc]
            rows.append(
                {"layers": f"{count} of {name}", "solved together": size, "seconds": spent, "other codes": other}
            )
            print(rows[-1], flush=True)
    return rows


@contextmanager
def loop(factory: Any) -> Any:
    """The solver with another inner loop."""
    usual, solver.inner_loop = solver.inner_loop, factory
    try:
        yield
    finally:
        solver.inner_loop = usual


def dense(device: str, repeats: int) -> list[dict[str, Any]]:
    """Every step of a layer; the solver with each inner loop that there is."""
    rows = []
    for name, (out, width) in DENSE.items():
        rows.append({"layers": f"{name}, {out} x {width}"} | steps_of(out, width, device, repeats))
        print(rows[-1], flush=True)
    return rows


def steps_of(out: int, width: int, device: str, repeats: int) -> dict[str, float]:
    """Seconds of each step."""
    gram = gram_of(width, seed=1, device=device)
    found = problem(out, width, seed=0, device=device)
    (weight,), importance = found.weights, found.prepared.importance

    def solve() -> Tensor:
        return gptq([found], ARGS, block_size=128, keep_zeros=False)[0][0].codes

    row = {
        "order and factor": seconds(lambda: prepare(gram, dampening_frac=0.01, by_activity=True), device, repeats),
        "search for scales": seconds(lambda: searched_qparams(weight, ARGS, importance), device, repeats),
        "solver": seconds(solve, device, repeats),
    }
    if device == "cuda":
        ours = solve()
        with loop(Steps):
            row["solver, loop in torch"] = seconds(solve, device, 1)
            row["other codes"] = float((solve() != ours).float().mean())
    return row


def machine(device: str) -> str:
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores, torch {torch.__version__}"


def table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|---" + "|--:" * (len(names) - 1) + "|"]
    for row in rows:
        cells = [f"{row[name]:.2%}" if name == "other codes" else shown(row[name]) for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shown(cell: Any) -> str:
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", nargs="?", default="experts", choices=("experts", "dense"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--write", action="store_true", help="into results/")
    args = parser.parse_args()
    rows = {"experts": experts, "dense": dense}[args.job](args.device, args.repeats)
    command = f"`python benchmarks/solver.py {' '.join(sys.argv[1:])}` on {time.strftime('%Y-%m-%d')}"
    where = f"Seconds are the least of {args.repeats}.\n{machine(args.device)}.\n"
    text = f"# GPTQ's solver: {args.job}\n\n{command}.\n\n{table(rows)}\n\n{where}"
    print(text)
    if args.write:
        name = HERE / "results" / f"solver-{args.job}-{args.device}"
        name.with_suffix(".md").write_text(text)
        name.with_suffix(".json").write_text(
            json.dumps({"machine": machine(args.device), "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
