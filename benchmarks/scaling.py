"""How seconds and memory of a streamed GPTQ run grow with tokens, width, blocks and experts.

    python benchmarks/scaling.py --cache /tmp/cache --repeats 3 --write

Random weights in bfloat16, W4A16 with groups of 64, samples of 512 tokens, from a folder to a folder.  Each point is a
process of its own; its seconds are those of the run as its report has them, and its memory is the peak over the bare
imports.  The points of an axis are measured in turns, because a machine may be slower for a while, and the table has
medians.  Operations are counted from shapes: a forward of the blocks' weights and of attention, the lower halves of the
Gram matrices, factors and inverses, errors of columns.  `--only` takes some axes; the plot wants matplotlib.
"""

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from resident import status

RESULTS = Path(__file__).parent / "results"
LENGTH = 512
RECIPE = r"GPTQModifier: {scheme: W4A16, group_size: 64, ignore: [lm_head, 're:.*mlp\.gate$']}"
AXES: dict[str, list[dict[str, int]]] = {
    "tokens": [{"width": 576, "inner": 1536, "blocks": 4, "samples": count} for count in (16, 32, 64, 128, 256)],
    "width": [
        {"width": width, "inner": 1536 * width // 576 // 64 * 64, "blocks": 2, "samples": 16}
        for width in (576, 1152, 2304, 4096)
    ],
    "blocks": [{"width": 256, "inner": 512, "blocks": count, "samples": 8} for count in (30, 60, 120)],
    "experts": [
        {"width": 256, "inner": 128, "blocks": 2, "samples": 16, "experts": count} for count in (8, 32, 128, 256)
    ],
}


def build(folder: Path, *, width: int, inner: int, blocks: int, experts: int = 0, **_: int) -> None:
    """A Llama, or a Qwen 3 mixture, with random weights."""
    import torch
    import transformers

    from coldpress.testing.models import tiny_tokenizer

    torch.manual_seed(0)
    heads = width // 64
    common = {
        "vocab_size": 4096, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": blocks,
        "num_attention_heads": heads, "num_key_value_heads": math.gcd(heads, 3 if heads % 3 == 0 else 4),
        "head_dim": 64, "max_position_embeddings": LENGTH,
    }  # fmt: skip
    if experts:
        config = transformers.Qwen3MoeConfig(
            **common, moe_intermediate_size=inner, num_experts=experts, num_experts_per_tok=4, norm_topk_prob=True
        )
        model: Any = transformers.Qwen3MoeForCausalLM(config)
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**common))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = LENGTH  # where samples are cut
    tokenizer.save_pretrained(folder)


def operations(*, width: int, inner: int, blocks: int, samples: int, experts: int = 0) -> float:
    """Of a run, in multiplications and additions."""
    tokens, heads = samples * LENGTH, width // 64
    keys = 64 * math.gcd(heads, 3 if heads % 3 == 0 else 4)
    copies = max(1, experts)  # all experts see all tokens
    layers = [  # columns, rows of all layers that read them, how many such inputs
        (width, width + 2 * keys, 1),
        (width, width, 1),
        (width, 2 * inner, copies),
        (inner, width, copies),
    ]
    total = 4.0 * tokens * LENGTH * width  # attention
    for columns, rows, count in layers:
        total += count * 2 * tokens * columns * rows  # a forward
        total += count * (4 / 3 * columns**3 + rows * columns**2)  # factor and inverse, errors
    inputs = [(width, 2 + 1), (inner, copies)]  # experts that see all tokens share the Gram matrix of their input
    total += sum(count * tokens * columns**2 for columns, count in inputs)
    return blocks * total


def child(folder: Path, samples: int) -> None:
    """Import everything, note the memory, compress, and say what it took."""
    import torch
    import transformers.models.llama.modeling_llama
    import transformers.models.qwen3_moe.modeling_qwen3_moe  # noqa: F401

    import coldpress
    from coldpress import registry

    for kind in registry.KINDS:
        for plugin in registry.available(kind):
            plugin.load()
    ids = torch.randint(3, 259, (samples, LENGTH), generator=torch.Generator().manual_seed(0))
    out = folder.with_name("out")
    bare = status()
    coldpress.oneshot(
        str(folder), RECIPE, output_dir=str(out), dataset=ids.tolist(), num_calibration_samples=samples,
        max_seq_length=LENGTH, return_model=False, quiet=True,
    )  # fmt: skip
    peak = status()["VmHWM"] - bare["VmRSS"]
    print(json.dumps({"seconds": json.loads((out / "report.json").read_text())["seconds"], "peak": peak}))


def axis_of(cache: Path, points: list[dict[str, int]], repeats: int) -> list[dict[str, Any]]:
    """The points of an axis in turns: medians, and all seconds."""
    runs: list[list[dict[str, Any]]] = [[] for _ in points]
    for _ in range(repeats):
        for point, own in zip(points, runs, strict=True):
            own.append(measure(cache, point))
            print(json.dumps(own[-1]), file=sys.stderr, flush=True)
    return [
        {
            **own[0],
            **{key: statistics.median(one[key] for one in own) for key in ("seconds", "peak")},
            "runs": sorted(round(one["seconds"], 2) for one in own),
        }
        for own in runs
    ]


def measure(cache: Path, point: dict[str, int]) -> dict[str, Any]:
    """One run of a point."""
    for name in ("model", "out", "out.partial"):
        shutil.rmtree(cache / name, ignore_errors=True)
    build(cache / "model", **point)
    command = [sys.executable, __file__, "--cache", str(cache), "--child", str(point["samples"])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return {**point, "operations": operations(**point), **json.loads(run.stdout.splitlines()[-1])}


def spread(one: dict[str, Any]) -> str:
    """How many runs a point had, and between which seconds they lie."""
    runs = one.get("runs", [one["seconds"]])
    return "1" if len(runs) == 1 else f"{len(runs)}, {runs[0]:.1f} to {runs[-1]:.1f}"


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Every axis, with the exponent by which seconds grow with operations from point to point."""
    lines = []
    for axis, points in found.items():
        lines += [
            f"\n## {axis}\n",
            f"| {axis} | operations | seconds | for 10^12 of them | grow with operations to the | peak, MB | runs |",
            "|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for number, one in enumerate(points):
            size = one["samples"] * LENGTH if axis == "tokens" else one[axis]
            power = ""
            if number:
                last = points[number - 1]
                grown = math.log(one["seconds"] / last["seconds"])
                power = f"{grown / math.log(one['operations'] / last['operations']):.2f}"
            lines.append(
                f"| {size} | {one['operations']:.2e} | {one['seconds']:.1f} | "
                f"{one['seconds'] / one['operations'] * 1e12:.1f} | {power} | {one['peak'] / 1e6:.0f} | {spread(one)} |"
            )
    return "\n".join(lines)


def plot(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Seconds and memory of every axis against operations, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "coldpress"
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, points in found.items():
        operations = [one["operations"] for one in points]
        left.loglog(operations, [one["seconds"] for one in points], marker="o", label=axis)
        right.loglog(operations, [one["peak"] / 1e6 for one in points], marker="o", label=axis)
    left.set(xlabel="operations", ylabel="seconds")
    right.set(xlabel="operations", ylabel="peak memory over the imports, MB")
    left.legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="a folder for models (1 GB) and outputs")
    parser.add_argument("--only", choices=list(AXES), nargs="+", default=list(AXES))
    parser.add_argument("--repeats", type=int, default=1, help="runs of each point, in turns")
    parser.add_argument("--write", action="store_true", help="write results/scaling.{md,json,svg}")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.cache / "model", options.child)
        return
    import torch

    stored = RESULTS / "scaling.json"
    before = json.loads(stored.read_text())["axes"] if stored.exists() else {}
    measured = {}
    for axis in options.only:
        measured[axis] = axis_of(options.cache, AXES[axis], options.repeats)
    found = {axis: measured.get(axis, before.get(axis)) for axis in AXES if axis in measured or axis in before}
    where = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    command = "python benchmarks/scaling.py --cache CACHE --repeats 3 --write"
    text = f"# How cost grows\n\n`{command}` on {date.today()}: {where}.\n\n![seconds and memory](scaling.svg)\n"
    text += table(found) + "\n"
    print(text)
    if options.write:
        stored.write_text(json.dumps({"axes": found}, indent=1) + "\n")
        stored.with_suffix(".md").write_text(text)
        plot(found, stored.with_suffix(".svg"))


if __name__ == "__main__":
    main()
