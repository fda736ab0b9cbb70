"""What compressing without a model costs: against copying the same bytes, and against llm-compressor's model_free_ptq.

    python benchmarks/model_free.py --peer .venv-peer --write

A Llama of random weights in bfloat16, 22 blocks of width 2048, 3 GB in 8 files.  Each of these is a process of its own,
in turns, `--repeats` times; `--schemes` and `--repeats` divide it into pieces, whose runs `--write` adds to each other:

    copy      cp of the folder, and sync
    coldpress model_free_ptq with 2 workers and one thread each
    peer      llm-compressor's, with `max_workers=2`, which the CPU does one shard after the other
    rounding  the arithmetic alone: units in memory, compressed and thrown away, with one thread

Wall and CPU seconds, because other processes may be running; peak memory as the kernel has it (`ru_maxrss`).
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SCHEMES = ("W4A16", "FP8_DYNAMIC", "NVFP4A16")
KEYS = ("seconds", "cpu", "mb")
NAMES = {"copy": "cp + sync", "coldpress": "coldpress", "peer": "llm-compressor"}
WIDTH, INNER, HEADS, BLOCKS, WORDS, FILES = 2048, 8192, 512, 22, 32000, 8

OURS = """
import sys
from coldpress import model_free_ptq
settings = {"scheme": sys.argv[3], "ignore": ["lm_head"], "max_workers": 2, "device": "cpu", "quiet": True}
model_free_ptq(sys.argv[1], sys.argv[2], **settings)
"""

PEER = """
import sys
from llmcompressor import model_free_ptq
model_free_ptq(sys.argv[1], sys.argv[2], scheme=sys.argv[3], ignore=["lm_head", "model.embed_tokens"], max_workers=2,
               device="cpu")
"""

WATCH = """
import json, os, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
os.sync()
used = resource.getrusage(resource.RUSAGE_CHILDREN)
found = {"seconds": time.perf_counter() - start, "cpu": used.ru_utime + used.ru_stime, "mb": used.ru_maxrss / 1000}
print(json.dumps({**found, "code": done.returncode, "out": done.stdout[-300:], "err": done.stderr[-2000:]}))
"""

ROUNDING = """
import sys, time
import torch
from coldpress.entrypoints.model_free import ModelFreeArguments, output_form, prepare
from coldpress.modifiers import QuantizationModifier
from coldpress.recipe import Recipe
torch.set_num_threads(1)
recipe = Recipe((QuantizationModifier(scheme=sys.argv[3], ignore=["lm_head"]),))
arguments = ModelFreeArguments(model=sys.argv[1], output=sys.argv[2], max_workers=1, device="cpu")
job = prepare(recipe, output_form(recipe, None), arguments)
fates, shards = job.plan()
units = [unit for shard in shards for unit in shard.units][:12]
run = job.unit_run(fates)
run.run(units[0])
weights, start = 0, time.process_time()
for unit in units[1:]:
    run.run(unit)
    weights += sum(job.outline.model.get_submodule(name).weight.numel() for name in unit.layers)
print((time.process_time() - start) / weights)
"""


def build(folder: Path) -> None:
    """The checkpoint, file by file."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    shapes = {"model.embed_tokens.weight": (WORDS, WIDTH)}
    for block in range(BLOCKS):
        prefix = f"model.layers.{block}"
        for name, rows in (("q_proj", WIDTH), ("k_proj", HEADS), ("v_proj", HEADS), ("o_proj", WIDTH)):
            shapes[f"{prefix}.self_attn.{name}.weight"] = (rows, WIDTH)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = shapes[f"{prefix}.mlp.up_proj.weight"] = (INNER, WIDTH)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (WIDTH, INNER)
        shapes[f"{prefix}.input_layernorm.weight"] = shapes[f"{prefix}.post_attention_layernorm.weight"] = (WIDTH,)
    shapes |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (WORDS, WIDTH)}
    names, where = list(shapes), {}
    share = -(-len(names) // FILES)
    for number in range(FILES):
        file = f"model-{number + 1:05d}-of-{FILES:05d}.safetensors"
        own = names[number * share : (number + 1) * share]
        save_file({name: torch.randn(shapes[name]).bfloat16() * 0.02 for name in own}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(own, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": WORDS,
    }
    (folder / "config.json").write_text(json.dumps(settings))


def measured(command: list[str], output: Path, *, may_fail: bool = False) -> dict:
    """Wall and CPU seconds of a process and its children, and the most memory that one of them held."""
    shutil.rmtree(output, ignore_errors=True)
    subprocess.run(["sync"], check=True)
    found = json.loads(subprocess.run([sys.executable, "-c", WATCH, *command], check=True, capture_output=True).stdout)
    if found["code"] and not may_fail:
        raise SystemExit(found["err"])
    return found


def measure(source: Path, scratch: Path, peer: Path | None, scheme: str) -> dict[str, dict]:
    """One run of each, in turns."""
    commands = {
        "copy": ["cp", "-r", str(source), str(scratch / "copy")],
        "coldpress": [sys.executable, "-c", OURS, str(source), str(scratch / "coldpress"), scheme],
    }
    if peer is not None:
        commands["peer"] = [str(peer / "bin" / "python"), "-c", PEER, str(source), str(scratch / "peer"), scheme]
    found = {}
    for name, command in commands.items():
        one = measured(command, scratch / name, may_fail=name == "peer")
        failed = one["err"].strip().rpartition("\n")[2][:200]
        found[name] = {"failed": failed} if one["code"] else {key: round(one[key], 2) for key in KEYS}
        shutil.rmtree(scratch / name, ignore_errors=True)
        sys.stderr.write(f"{scheme} {name} {found[name]}\n")
    return found


def alone(source: Path, scratch: Path, scheme: str) -> float:
    """Nanoseconds of CPU that the arithmetic takes for a weight."""
    found = measured([sys.executable, "-c", ROUNDING, str(source), str(scratch / "none"), scheme], scratch / "none")
    return round(float(found["out"].split()[-1]) * 1e9, 1)


def imports(scratch: Path) -> int:
    """Megabytes that importing alone holds."""
    return round(measured([sys.executable, "-c", "import coldpress.entrypoints.model_free"], scratch / "none")["mb"])


def table(found: dict) -> str:
    largest = found["largest_tensor_mb"]
    lines = [
        "# Without the model",
        "",
        "`python benchmarks/model_free.py --peer .venv-peer --write`, "
        f"{found['machine']}, {', '.join(found['dates'])}.",
        f"{found['gb']:.2f} GB in {FILES} files; the largest tensor has {largest:.0f} MB; medians.",
        "",
        "| | runs | seconds | CPU seconds | times cp + sync | peer / ours, wall | and CPU | peak MB "
        "| ns a weight, alone |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for scheme, runs in found["runs"].items():
        failed = next((run["peer"]["failed"] for run in runs if "failed" in run.get("peer", ())), None)
        names = [name for name in NAMES if any(name in run for run in runs) and not (name == "peer" and failed)]
        middle = {
            name: {key: statistics.median(run[name][key] for run in runs if name in run) for key in KEYS}
            for name in names
        }
        for name, one in middle.items():
            count = sum(name in run for run in runs)
            cells = [f"{scheme}: {NAMES[name]}", count, round(one["seconds"], 1), round(one["cpu"], 1)]
            cells.append(round(one["seconds"] / middle["copy"]["seconds"], 1))
            compared = name == "coldpress" and "peer" in middle
            cells += [round(middle["peer"][key] / one[key], 1) if compared else "" for key in ("seconds", "cpu")]
            cells.append("" if name == "copy" else round(one["mb"]))
            lines.append(_row([*cells, found["ns_per_weight"].get(scheme, "") if name == "coldpress" else ""]))
        if failed:
            lines.append(_row([f"{scheme}: {NAMES['peer']}", "", f"fails: {failed}", "", "", "", "", "", ""]))
    limit = 2 * largest + 300
    copies = [run["copy"]["seconds"] for runs in found["runs"].values() for run in runs]
    lines += [
        "",
        f"The same copy took {min(copies):.1f} to {max(copies):.1f} s: where these are far apart, other processes were "
        "running, and CPU seconds tell more.",
        f"Importing alone holds {found['imports_mb']} MB; two largest tensors and 300 MB are {limit:.0f} MB.",
        "",
    ]
    return "\n".join(lines)


def _row(cells: list) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path("model_free_scratch"))
    parser.add_argument("--peer", type=Path, help="virtual environment of llm-compressor")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES))
    parser.add_argument("--write", action="store_true", help="add the runs to those that are in benchmarks/results")
    parser.add_argument("--fresh", action="store_true", help="forget those that are there")
    arguments = parser.parse_args()
    source, results = arguments.scratch / "model", RESULTS / "model_free.json"
    if not source.exists():
        build(source)
    sizes = [path.stat().st_size for path in source.glob("*.safetensors")]
    found = json.loads(results.read_text()) if results.exists() and not arguments.fresh else {}
    found |= {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "gb": sum(sizes) / 1e9}
    found |= {"largest_tensor_mb": WORDS * WIDTH * 2 / 1e6, "imports_mb": imports(arguments.scratch)}
    found["dates"] = sorted({*found.get("dates", ()), str(date.today())})
    for scheme in arguments.schemes:
        runs = found.setdefault("runs", {}).setdefault(scheme, [])
        runs += [measure(source, arguments.scratch, arguments.peer, scheme) for _ in range(arguments.repeats)]
        found.setdefault("ns_per_weight", {})[scheme] = alone(source, arguments.scratch, scheme)
        if arguments.write:
            results.write_text(json.dumps(found, indent=2) + "\n")
            results.with_suffix(".md").write_text(table(found))
    sys.stdout.write(table(found))


if __name__ == "__main__":
    main()
