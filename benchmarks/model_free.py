"""What compressing without a model costs: against copying the same bytes, and against llm-compressor's model_free_ptq.

    python benchmarks/model_free.py --peer .venv-peer --write

A Llama of random weights in bfloat16, 22 blocks of width 2048, 3 GB in 8 files.  Each of these is a process of its own,
in turns, `--repeats` times, medians:

    copy      cp of the folder, and sync
    coldpress model_free_ptq with 2 workers and one thread each
    peer      llm-compressor's, with `max_workers=2`, which the CPU does one shard after the other
    rounding  the arithmetic alone: units in memory, compressed and thrown away, with one thread

Wall and CPU seconds, because other processes may be running; peak memory as the kernel has it (`ru_maxrss`).
"""

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SCHEMES = ("W4A16", "FP8_DYNAMIC", "NVFP4A16")
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
run = job._unit_run(fates)
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


def measured(command: list[str], output: Path) -> dict:
    """Wall and CPU seconds of a process and its children, and the most memory that one of them held."""
    shutil.rmtree(output, ignore_errors=True)
    subprocess.run(["sync"], check=True)
    found = json.loads(subprocess.run([sys.executable, "-c", WATCH, *command], check=True, capture_output=True).stdout)
    if found["code"]:
        raise SystemExit(found["err"])
    return found


def measure(source: Path, scratch: Path, peer: Path | None, *, repeats: int, schemes: list[str]) -> dict:
    rows: dict[str, dict] = {}
    ours, cp = scratch / "ours", scratch / "copy"
    runs: dict[str, list[dict]] = {}
    for _ in range(repeats):
        runs.setdefault("copy", []).append(measured(["cp", "-r", str(source), str(cp)], cp))
        for scheme in schemes:
            command = [sys.executable, "-c", OURS, str(source), str(ours), scheme]
            runs.setdefault(f"coldpress {scheme}", []).append(measured(command, ours))
            if peer is not None:
                other = [str(peer / "bin" / "python"), "-c", PEER, str(source), str(scratch / "peer"), scheme]
                runs.setdefault(f"peer {scheme}", []).append(measured(other, scratch / "peer"))
    for name, found in runs.items():
        rows[name] = {key: round(statistics.median(one[key] for one in found), 2) for key in ("seconds", "cpu", "mb")}
    for scheme in schemes:
        found = measured([sys.executable, "-c", ROUNDING, str(source), str(scratch / "none"), scheme], scratch / "none")
        rows[f"rounding {scheme}"] = {"ns_per_weight": round(float(found["out"].split()[-1]) * 1e9, 1)}
    rows["imports"] = {
        "mb": round(measured([sys.executable, "-c", "import coldpress.entrypoints.model_free"], ours)["mb"])
    }
    for folder in ("copy", "ours", "peer"):
        shutil.rmtree(scratch / folder, ignore_errors=True)
    return rows


def table(found: dict) -> str:
    rows, largest = found["rows"], found["largest_tensor_mb"]
    lines = [
        "# Without the model",
        "",
        f"`python benchmarks/model_free.py --repeats {found['repeats']} --write`, {found['date']}, {found['machine']}.",
        f"{found['gb']:.2f} GB in {FILES} files; the largest tensor has {largest:.0f} MB.",
        found["note"],
        "",
        "| | seconds | CPU seconds | times cp + sync | peer / ours, wall | and CPU | peak MB | ns a weight, alone |",
        "|---|---|---|---|---|---|---|---|",
        f"| cp + sync | {rows['copy']['seconds']} | {rows['copy']['cpu']} | 1 | | | | |",
    ]
    for scheme in found["schemes"]:
        own, other = rows[f"coldpress {scheme}"], rows.get(f"peer {scheme}")
        cells = [f"coldpress {scheme}", own["seconds"], own["cpu"], round(own["seconds"] / rows["copy"]["seconds"], 1)]
        for key in ("seconds", "cpu"):
            cells.append(round(other[key] / own[key], 1) if other else "")
        lines.append(_row([*cells, round(own["mb"]), rows[f"rounding {scheme}"]["ns_per_weight"]]))
        if other:
            times = round(other["seconds"] / rows["copy"]["seconds"], 1)
            lines.append(
                _row([f"peer {scheme}", other["seconds"], other["cpu"], times, "", "", round(other["mb"]), ""])
            )
    limit = 2 * largest + 300
    lines += [
        "",
        f"Importing alone holds {rows['imports']['mb']} MB; two largest tensors and 300 MB are {limit:.0f} MB.",
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
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    source = arguments.scratch / "model"
    if not source.exists():
        build(source)
    schemes = arguments.schemes
    rows = measure(source, arguments.scratch, arguments.peer, repeats=arguments.repeats, schemes=schemes)
    sizes = [path.stat().st_size for path in source.glob("*.safetensors")]
    load = Path("/proc/loadavg").read_text().split()[0] if Path("/proc/loadavg").exists() else "?"
    found = {
        "date": str(date.today()),
        "machine": f"{platform.machine()}, 2 cores",
        "repeats": arguments.repeats,
        "schemes": schemes,
        "gb": sum(sizes) / 1e9,
        "largest_tensor_mb": WORDS * WIDTH * 2 / 1e6,
        "note": f"Load of the machine at the end, with this: {load}.",
        "rows": rows,
    }
    print(table(found))
    if arguments.write:
        (RESULTS / "model_free.json").write_text(json.dumps(found, indent=2) + "\n")
        (RESULTS / "model_free.md").write_text(table(found))


if __name__ == "__main__":
    main()
