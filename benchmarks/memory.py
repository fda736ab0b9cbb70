"""Peak memory of compressing a model that is streamed from disk, against what its two largest blocks need.

    python benchmarks/memory.py --cache /tmp/cache --peer .venv-peer --write

The model is a Llama of about 1.5 billion random weights in bfloat16, written by this script, shard by shard.
Each case runs in a process of its own, whose peak is VmHWM of /proc/self/status: the largest resident set ever, files
that are mapped included.  `mapped` is RssFile at the end, which is code of libraries; weights are read, not mapped.
The peak over the bare imports must stay below two blocks + embeddings (and head) + calibration activations + the Gram
matrices of a block and the factor of the largest + 300 MB; in a reverse sweep the inputs of all blocks are activations.

With `--peer` the same GPTQ also runs on a loaded model, ours and llm-compressor's, in turns.  There the peak is that of
the whole process, because the two import what they need at other times.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from random_llama import build, shapes
from resident import status
from transformers import LlamaConfig

RESULTS = Path(__file__).parent / "results"
MODEL = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 6912,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 2048,
}
SMALL = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 2048}
SAMPLES, TOKENS = 16, 256
HEADROOM = 300_000_000
W4A16 = "QuantizationModifier: {scheme: W4A16, ignore: [lm_head]}"
STATIC = (
    "QuantizationModifier: {ignore: [lm_head], config_groups: {all: {targets: [Linear], "
    "weights: {num_bits: 8, strategy: channel}, input_activations: {num_bits: 8, strategy: tensor}}}}"
)
GPTQ = "GPTQModifier: {scheme: W4A16, ignore: [lm_head]}"
GUIDED = "WandaModifier: {mask_structure: '2:4', guidance: data, ignore: [lm_head]}"  # needs little but the sweep
CASES = {
    "W4A16, data_free": {"recipe": W4A16, "pipeline": "data_free"},
    "W8A8 static, sequential": {"recipe": STATIC, "pipeline": "sequential"},
    "GPTQ W4A16, sequential": {"recipe": GPTQ, "pipeline": "sequential"},
    "reverse sweep, sequential": {"recipe": GUIDED, "pipeline": "sequential"},
}
LOADED = """
import json, re, sys, time
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
side, folder, samples, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
def status(name):
    return int(re.search(rf"^{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text(), re.M)[1]) * 1024
rows = torch.randint(3, 259, (samples, tokens), generator=torch.Generator().manual_seed(0)).tolist()
common = {"num_calibration_samples": samples, "max_seq_length": tokens}
if side == "coldpress":
    from coldpress import load_model, oneshot
    from coldpress.modifiers import GPTQModifier
    bare, model = status("VmRSS"), load_model(folder)
    settings = {"dataset": [{"input_ids": row} for row in rows], "quiet": True}
else:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    bare, model = status("VmRSS"), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    settings = {"dataset": Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * tokens] * samples})}
    settings["tokenizer"] = folder
before = sum(one.nbytes for one in model.parameters())
start = time.perf_counter()
recipe = [GPTQModifier(scheme="W4A16", targets=["Linear"], ignore=["lm_head"])]
oneshot(model=model, recipe=recipe, **common, **settings)
seconds = round(time.perf_counter() - start, 1)
peak = status("VmHWM")
print(json.dumps({"case": side, "bare": bare, "weights": before, "peak": peak, "seconds": seconds}))
"""


def child(model: Path, output: Path, case: str) -> None:
    """Import everything, note the memory, compress, and say what the peak was."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import coldpress
    from coldpress import registry

    for kind in registry.KINDS:
        for plugin in registry.available(kind):
            plugin.load()
    settings = dict(CASES[case])
    if settings["pipeline"] == "sequential":
        ids = torch.randint(3, 259, (SAMPLES, 1, TOKENS), generator=torch.Generator().manual_seed(0))
        settings["dataset"] = torch.utils.data.DataLoader(
            [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids], batch_size=None
        )
    bare = status()
    start = time.perf_counter()
    coldpress.oneshot(str(model), output_dir=str(output), return_model=False, quiet=True, **settings)
    after = status()
    print(
        json.dumps(
            {
                "bare": bare["VmRSS"],
                "peak": after["VmHWM"] - bare["VmRSS"],
                "mapped_before": bare["RssFile"],
                "mapped": after["RssFile"],
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
    )


def budget(config: LlamaConfig, case: str) -> dict[str, int]:
    """What the peak may be, in bytes."""
    head, *blocks, tail = [sum(_count(shape) for shape in part.values()) for part in shapes(config)]
    parts = {"two blocks": 2 * 2 * max(blocks), "embeddings": 2 * (head + tail), "activations": 0, "statistics": 0}
    if "sequential" in case:
        parts["activations"] = SAMPLES * TOKENS * config.hidden_size * 2 * 2  # inputs and outputs of a block
    if "reverse" in case:  # the inputs of all blocks are kept
        parts["activations"] += SAMPLES * TOKENS * config.hidden_size * 2 * config.num_hidden_layers
    if "GPTQ" in case:  # Gram matrices in float32, and two matrices that the largest is factorized in
        inner = config.intermediate_size**2
        parts["statistics"] = 4 * (3 * config.hidden_size**2 + inner + 2 * inner)
    return {**parts, "headroom": HEADROOM}


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def measure(cache: Path, settings: dict[str, int], only: str) -> list[dict]:
    """Every case in a process of its own."""
    model = cache / "model"
    if not (model / "model.safetensors.index.json").exists():
        shutil.rmtree(model, ignore_errors=True)
        build(model, **settings)
    config = LlamaConfig(**settings)
    results = []
    for number, case in enumerate(CASES):
        if only not in case:
            continue
        output = cache / f"out-{number}"
        shutil.rmtree(output, ignore_errors=True)
        shutil.rmtree(output.with_name(f"{output.name}.partial"), ignore_errors=True)
        command = [sys.executable, __file__, "--child", case, "--cache", str(cache), "--output", str(output)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        shutil.rmtree(output)
        limits = budget(config, case)
        results.append({"case": case, **json.loads(run.stdout), "budget": limits, "limit": sum(limits.values())})
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    return results


def loaded(cache: Path, peer: Path, repeats: int) -> list[dict]:
    """GPTQ of a model that is in memory already, by both sides in turns, in processes of their own."""
    results = []
    sides = (("llm-compressor", peer / "bin" / "python"), ("coldpress", Path(sys.executable)))
    for side, python in sides * repeats:
        command = [str(python), "-c", LOADED, side, str(cache / "model"), str(SAMPLES), str(TOKENS)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(run.stdout.strip().splitlines()[-1]))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    return results


def loaded_table(results: list[dict]) -> str:
    """What both sides hold beside a loaded model."""
    lines = ["", "GPTQ, W4A16, of the model in memory; nothing is written.", ""]
    lines += ["| | runs | peak of the process | of it weights | and bare imports | the rest |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    for side in dict.fromkeys(one["case"] for one in results):
        own = [one for one in results if one["case"] == side]
        weights, bare = own[0]["weights"] / 1e6, median(one["bare"] / 1e6 for one in own)
        peaks = [one["peak"] / 1e6 for one in own]
        rest = median(peaks) - weights - bare
        lines.append(f"| {side} | {len(own)} | {spread(peaks)} | {weights:.0f} | {bare:.0f} | {rest:.0f} |")
    lines += ["", "coldpress imports some of what it needs when it needs it, which is in the rest."]
    return "\n".join(lines) + "\n"


def spread(numbers: list[float]) -> str:
    """The median, and in brackets the least and the greatest."""
    return f"{median(numbers):.0f} ({min(numbers):.0f} to {max(numbers):.0f})"


def table(results: list[dict], weights: int, command: str) -> str:
    """The outcome for a person."""
    lines = [
        "# Memory of a streamed run",
        "",
        f"`{command}`",
        "",
        f"A Llama of {weights / 1e9:.2f} billion weights (bfloat16, {2 * weights / 1e9:.2f} GB): 24 blocks, untied.",
        "Peak: VmHWM over the resident set after the bare imports (torch, transformers, every plugin), in MB.",
        "Limit: two blocks + embedding and head + calibration activations + Gram matrices of a block and what GPTQ "
        "makes of the largest + 300 MB.",
        "Mapped: growth of RssFile (clean pages of files; part of the peak); weights are read, not mapped.",
        "",
        f"| case | bare imports | peak over them | limit | {' | '.join(results[0]['budget'])} | mapped | seconds |",
        f"|---|--:|--:|--:|{'--:|' * len(results[0]['budget'])}--:|--:|",
    ]
    for r in results:
        cells = [r["bare"], r["peak"], r["limit"], *r["budget"].values(), r["mapped"] - r["mapped_before"]]
        numbers = " | ".join(f"{cell / 1e6:.0f}" for cell in cells)
        lines.append(f"| {r['case']} | {numbers} | {r['seconds']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="a folder for the model (3 GB) and outputs")
    parser.add_argument("--only", default="", help="cases whose name holds this word, which the result is named by")
    parser.add_argument("--small", action="store_true", help="a model of a few megabytes, to try the script")
    parser.add_argument("--write", action="store_true", help="write results/memory{,-ONLY}.{md,json}")
    parser.add_argument("--peer", type=Path, help="environment of llm-compressor, beside which the model is in memory")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side beside the peer")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.cache / "model", options.output, options.child)
        return
    settings = {**MODEL, **(SMALL if options.small else {})}
    results = measure(options.cache, settings, options.only)
    weights = sum(_count(shape) for part in shapes(LlamaConfig(**settings)) for shape in part.values())
    words = [f"--only {options.only}"] if options.only else []
    words += [f"--peer .venv-peer --repeats {options.repeats}"] if options.peer else []
    command = " ".join(["python benchmarks/memory.py --cache CACHE", *words, "--write"])
    text = table(results, weights, command)
    both = loaded(options.cache, options.peer, options.repeats) if options.peer else []
    text += loaded_table(both) if both else ""
    print(text)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        stem = RESULTS / "-".join(["memory", *options.only.split()])
        stem.with_suffix(".md").write_text(text)
        found = {"model": MODEL, "results": results, "loaded": both}
        stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(any(result["peak"] > result["limit"] for result in results))


if __name__ == "__main__":
    main()
