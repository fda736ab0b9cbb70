"""Samples of many lengths: GPTQ of SmolLM2 with padded tokens, without, and with `--peer` llm-compressor's.

    python benchmarks/lengths.py --write

Every sample has another length, as texts have that are not joined: a thousand kernels, which is what oneDNN keeps, are
not enough for all of them.  Bfloat16 on a CPU, W4A16 with groups of 64, random token ids, a process for each run;
seconds and CPU seconds of `oneshot` alone, and peak memory over that of the loaded model.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

RUN = """
import json, resource, sys, time
import torch
side, folder, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(threads)
rows = json.load(open(f"{folder}/samples.json"))
common = {"num_calibration_samples": len(rows), "max_seq_length": max(map(len, rows))}
if side == "llm-compressor":
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    columns = {"input_ids": rows, "attention_mask": [[1] * len(ids) for ids in rows]}
    settings = {"dataset": Dataset.from_dict(columns), "tokenizer": folder}
else:
    from coldpress import load_model, oneshot
    from coldpress.models import padded
    from coldpress.modifiers import GPTQModifier
    if side == "coldpress, not padded":
        padded.padded_count = lambda tokens: tokens
    model = load_model(folder)
    settings = {"dataset": [{"input_ids": ids} for ids in rows], "quiet": True}
weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
recipe = [GPTQModifier(config_groups={"all": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"])]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start, used = time.perf_counter(), time.process_time()
oneshot(model=model, recipe=recipe, **common, **settings)
seconds, cpu = time.perf_counter() - start, time.process_time() - used
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": round(seconds, 1), "cpu": round(cpu, 1), "megabytes": round((peak - before) / 1000)}))
"""


def prepare(folder: Path, *, samples: int, shortest: int) -> int:
    """The model as a folder, and samples of as many lengths; how many tokens they have."""
    import torch

    from coldpress import load_model, load_tokenizer

    model = load_model("smollm2")
    model.save_pretrained(folder)
    load_tokenizer("smollm2").save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    lengths = (torch.randperm(samples, generator=generator) + shortest).tolist()
    rows = [torch.randint(5, 40000, (length,), generator=generator).tolist() for length in lengths]
    (folder / "samples.json").write_text(json.dumps(rows))
    return sum(lengths)


def main() -> None:
    """Run each side once and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="environment of llm-compressor; without it our sides alone")
    parser.add_argument("--samples", type=int, default=320)
    parser.add_argument("--shortest", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write results/lengths.{md,json}")
    options = parser.parse_args()
    pythons = {"coldpress": sys.executable, "coldpress, not padded": sys.executable}
    if options.peer:
        pythons["llm-compressor"] = str(options.peer / "bin" / "python")
    runs: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        tokens = prepare(Path(name), samples=options.samples, shortest=options.shortest)
        for side, python in pythons.items():
            command = [python, "-c", RUN, side, name, str(options.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{side} fails:\n{done.stderr[-3000:]}")
            runs[side] = json.loads(done.stdout.strip().splitlines()[-1])
            print(side, runs[side], file=sys.stderr, flush=True)
    lines = ["# Samples of many lengths", ""]
    lines += [f"`python benchmarks/lengths.py {' '.join(sys.argv[1:])}` on {date.today()}, {platform.machine()}.", ""]
    lines += [
        f"GPTQ of SmolLM2, W4A16, groups of 64; {options.samples} samples of as many lengths, {tokens} tokens.",
        "",
    ]
    lines += ["| | seconds of `oneshot` | CPU seconds | peak over the model, MB |", "|---|--:|--:|--:|"]
    lines += [f"| {side} | {one['seconds']} | {one['cpu']} | {one['megabytes']} |" for side, one in runs.items()]
    text = "\n".join([*lines, ""])
    print(text)
    if options.write:
        (RESULTS / "lengths.md").write_text(text, encoding="utf-8")
        (RESULTS / "lengths.json").write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
