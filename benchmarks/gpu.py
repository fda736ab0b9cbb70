"""What a card makes of it: GPTQ of blocks of Llama 3 8B's shape, beside llm-compressor, in one run.

    python benchmarks/gpu.py --peer .venv-peer/bin/python --write
    python benchmarks/gpu.py --tiny --device cpu      # the same with small shapes, to try the command

Every part runs in a process of its own, which first does the same on a tiny model, so that kernels are compiled:

    kernel     GPTQ's inner loop in Triton beside the one in torch
    gptq       W4A16 of a model on the card, `samples` x `length` random tokens; two numbers of blocks, whose difference
               is a block, and whose first is the rest: so the whole model, of 32 blocks, is extrapolated
    peer       the same by llm-compressor, model on the CPU and blocks moved to the card, as its examples do; what waits
               between blocks stays on the card, and not in CPU memory, which is its default and slower
    streamed   a folder to a folder, a block at a time: the peak of host memory does not know how large the model is
    rounding   schemes without data, by gigabytes of weights a second

Weights are random: time and memory do not depend on what they are.  llm-compressor runs by `--peer`, a command of a
Python that has it; without one its part is left out.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from random_llama import build

HERE = Path(__file__).parent
LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 4096,
    "max_position_embeddings": 8192,
}
TINY = LLAMA | {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WHOLE = 32  # blocks of Llama 3 8B
PARTS = ("kernel", "gptq", "peer", "streamed", "rounding")


def folder(root: Path, blocks: int, shape: dict[str, int]) -> str:
    """A random model of some blocks, made once."""
    path = root / f"{shape['hidden_size']}-{blocks}"
    if not path.exists():
        build(path, num_hidden_layers=blocks, **shape)
    return str(path)


def ask(command: list[str], script: str, asked: dict[str, Any], log: Path) -> dict[str, Any]:
    """Let a process do something; its last line is the answer."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    paths = [str(HERE), *([environment["PYTHONPATH"]] if "PYTHONPATH" in environment else [])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    if asked.get("profile"):
        environment["CUDA_LAUNCH_BLOCKING"] = "1"
    start = time.perf_counter()
    with log.open("a", encoding="utf-8") as errors:
        run = subprocess.run(
            [*command, str(HERE / "card" / script), json.dumps(asked)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    if run.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"{script} {asked['task']} ended with {run.returncode}: {' '.join(last)}")
    if asked.get("profile"):
        print(run.stdout)
    found = json.loads(run.stdout.strip().splitlines()[-1])
    print(f"{script} {asked['task']}, {time.perf_counter() - start:.0f} s in all: {found}", file=sys.stderr, flush=True)
    return found


def measure(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Every part, in order; of one that fails, its error."""
    shape = TINY if options.tiny else LLAMA
    common = {name: getattr(options, name) for name in ("device", "samples", "length", "batch", "profile")}
    common |= {"warm": folder(root, 1, TINY), "output": str(root / "out")}
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    shapes = [(width, width), (2 * inner, width), (width, inner)]
    ours, peer = ([sys.executable], "ours.py"), (shlex.split(options.peer), "peer.py")
    asked: dict[str, list[tuple[Any, dict[str, Any]]]] = {
        "kernel": [(ours, {"task": "kernel", "shapes": shapes})],
        "gptq": [(ours, {"task": "gptq", "blocks": blocks}) for blocks in options.blocks],
        "peer": [(peer, {"task": "gptq", "blocks": blocks}) for blocks in options.blocks if options.peer],
        "streamed": [(ours, {"task": "streamed", "blocks": max(options.blocks)})],
        "rounding": [(ours, {"task": "rounding", "blocks": max(options.blocks)})],
    }
    found: dict[str, Any] = {}
    for part in options.parts:
        try:
            found[part] = []
            for (command, script), task in asked[part]:
                model = {"model": folder(root, task["blocks"], shape)} if "blocks" in task else {}
                found[part].append({**task, **ask(command, script, common | task | model, root.with_suffix(".log"))})
        except RuntimeError as error:
            found[part] = []
            found.setdefault("errors", {})[part] = str(error)
    return found


def whole(runs: list[dict[str, Any]]) -> tuple[float, float]:
    """Seconds of a block, and of a model of `WHOLE` of them."""
    least, most = sorted(runs, key=lambda run: run["blocks"])
    block = (most["seconds"] - least["seconds"]) / (most["blocks"] - least["blocks"])
    return block, least["seconds"] + (WHOLE - least["blocks"]) * block


def gigabytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB"


def table(found: dict[str, Any]) -> list[str]:
    """What was found, for a person."""
    lines = []
    if found.get("gptq"):
        lines += ["| GPTQ, W4A16 | a block, s | 32 blocks, s | device memory over the model |", "|---|--:|--:|--:|"]
        for key, name in {"gptq": "coldpress", "peer": "llm-compressor"}.items():
            if found.get(key):
                block, model = whole(found[key])
                peak = max(run["device_peak"] for run in found[key])
                lines.append(f"| {name} | {block:.2f} | {model:.0f} | {gigabytes(peak)} |")
        if found.get("peer"):
            ratio = whole(found["peer"])[1] / whole(found["gptq"])[1]
            lines += ["", f"llm-compressor takes {ratio:.1f} times as long."]
        lines.append("")
    for run in found.get("streamed", []):
        lines += [
            f"Streamed, folder to folder, {run['blocks']} blocks: {run['seconds']:.1f} s, device peak "
            f"{gigabytes(run['device_peak'])}, host peak over the imports {gigabytes(run['host_peak'])}.",
            "",
        ]
    for run in found.get("kernel", []):
        lines += ["| layer | loop in Triton, s | loop in torch, s | other codes | loss beside it |"]
        lines += ["|---|--:|--:|--:|--:|"]
        for one in run["layers"]:
            lines.append(
                f"| {one['rows']} x {one['width']} | {one['triton']:.3f} | {one['torch']:.3f} | "
                f"{one['other codes']:.1e} | {one['loss']:.6f} |"
            )
        lines.append("")
    for run in found.get("rounding", []):
        lines += ["| rounded to nearest | weights, GB | s | GB/s |", "|---|--:|--:|--:|"]
        for name, one in run["schemes"].items():
            size = one["bytes"] / 1e9
            lines.append(f"| {name} | {size:.2f} | {one['seconds']:.3f} | {size / one['seconds']:.1f} |")
        lines.append("")
    return lines + [f"No numbers of `{part}`: {error}" for part, error in found.get("errors", {}).items()]


def page(found: dict[str, Any], options: argparse.Namespace) -> str:
    """The result, beside the command that makes it."""
    command = f"python benchmarks/gpu.py{' --peer PYTHON' if options.peer else ''} --write"
    shape = f"{options.samples} x {options.length} tokens; blocks: {' and '.join(map(str, options.blocks))}"
    return "\n".join(
        [
            "# On a card",
            "",
            f"`{command}` on {date.today().isoformat()}: {found['card']}, torch "
            f"{torch.__version__}; {shape}, of the shape of Llama 3 8B's.",
            "",
            *table(found),
        ]
    )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=1, help="batch size of llm-compressor; its default is 1")
    parser.add_argument("--blocks", type=int, nargs=2, default=[2, 6], help="two numbers of blocks")
    parser.add_argument("--peer", default="", help="command of a Python that has llm-compressor")
    parser.add_argument("--tiny", action="store_true", help="small shapes and few tokens, to try the command")
    parser.add_argument("--profile", action="store_true", help="say where our time goes; the device waits each time")
    parser.add_argument("--cache", type=Path, help="where models are kept; a folder that is removed, without it")
    parser.add_argument("--write", action="store_true", help="write results/gpu.{md,json}")
    options = parser.parse_args()
    if options.tiny:
        options.samples, options.length = 8, 64
    return options


def main() -> None:
    options = read_options()
    root = options.cache or Path(tempfile.mkdtemp())
    root.mkdir(exist_ok=True, parents=True)
    try:
        found = measure(options, root)
    finally:
        if options.cache is None:
            shutil.rmtree(root)
    found["card"] = torch.cuda.get_device_name() if options.device != "cpu" else "the CPU"
    print(page(found, options))
    if options.write:
        stem = HERE / "results" / "gpu"
        stem.with_suffix(".md").write_text(page(found, options), encoding="utf-8")
        stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
