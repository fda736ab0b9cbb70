"""What REAP costs: half of the experts of a random Qwen3-MoE, beside llm-compressor's.

    python benchmarks/reap.py --peer .venv-peer --repeats 3 --write

8 layers of 64 experts, width 512, in bfloat16; 16 samples of 512 random tokens.  Each run is a process of its own, in
turns, which has pruned a small model before, so that everything is imported: seconds of `oneshot` alone, CPU seconds,
and peak memory over that of the loaded model.  Both look at the same
model and tokens, so the experts that they keep are compared layer by layer: llm-compressor drops experts of a layer
before it looks at the next one, which moves what later layers see.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SIDES = ("peer", "ours")

RUN = """
import json, resource, sys, time
import torch
from transformers import AutoModelForCausalLM
side, folder, kept = sys.argv[1:4]
torch.set_num_threads(int(sys.argv[4]))
if side == "ours":
    from coldpress import oneshot
    from coldpress.modifiers import REAPPruningModifier
else:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning.reap import REAPPruningModifier
rows = json.load(open(f"{folder}/samples.json"))
if side == "ours":
    settings = {"dataset": [{"input_ids": ids} for ids in rows], "max_seq_length": len(rows[0]), "quiet": True}
else:
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(ids) for ids in rows]})
    settings = {"dataset": data, "num_calibration_samples": len(rows), "max_seq_length": len(rows[0])}
    settings["tokenizer"] = folder
small = AutoModelForCausalLM.from_pretrained(f"{folder}-small", dtype=torch.bfloat16)
oneshot(model=small, recipe=[REAPPruningModifier(sparsity=0.5)], **{**settings, "num_calibration_samples": 1})
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start, used = time.perf_counter(), time.process_time()
oneshot(model=model, recipe=[REAPPruningModifier(sparsity=0.5, report_path=kept)], **settings)
seconds, cpu = time.perf_counter() - start, time.process_time() - used
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "cpu": cpu, "megabytes": (peak - before) / 1000}))
"""


def make(folder: Path, *, layers: int, experts: int, samples: int, length: int) -> None:
    """A model of random weights, a small one, a tokenizer and samples."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    from coldpress.testing.models import tiny_tokenizer

    torch.manual_seed(0)
    sizes: dict[Path, dict[str, int]] = {
        folder: {"num_hidden_layers": layers, "num_experts": experts},
        folder.with_name(f"{folder.name}-small"): {"num_hidden_layers": 1, "num_experts": 16},
    }
    for place, own in sizes.items():
        config = Qwen3MoeConfig(
            vocab_size=2048,
            hidden_size=512,
            intermediate_size=1024,
            moe_intermediate_size=256,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=64,
            num_experts_per_tok=8,
            norm_topk_prob=True,
            tie_word_embeddings=False,
            **own,
        )
        Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(place)
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = length  # where samples are cut
    tokenizer.save_pretrained(folder)
    rows = torch.randint(0, 2048, (samples, length), generator=torch.Generator().manual_seed(1)).tolist()
    (folder / "samples.json").write_text(json.dumps(rows), encoding="utf-8")


def run(side: str, python: str, folder: Path, kept: Path, threads: int) -> dict[str, Any]:
    """One side, once."""
    done = subprocess.run(
        [python, "-c", RUN, side, str(folder), str(kept), str(threads)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{side} fails:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def agreement(ours: Path, theirs: Path) -> list[float]:
    """Share of the kept experts that both keep, layer by layer."""
    mine, other = (list(json.loads(path.read_text(encoding="utf-8")).values()) for path in (ours, theirs))
    return [len(set(a) & set(_numbers(b))) / len(a) for a, b in zip(mine, other, strict=True)]


def _numbers(kept: Any) -> list[int]:
    """The numbers of the experts that stay, however a report spells them."""
    return [int(one) for one in (kept if isinstance(kept, list) else kept.get("kept", kept.get("retained", [])))]


def page(runs: dict[str, list[dict[str, Any]]], shared: list[float] | None, command: str) -> str:
    """The table for a person."""
    lines = ["# REAP beside llm-compressor", "", f"`{command}` on {date.today()}, {platform.machine()}.", ""]
    lines += ["| | llm-compressor | coldpress | theirs / ours |", "|---|--:|--:|--:|"]
    for key, words in (
        ("seconds", "seconds of `oneshot`"),
        ("cpu", "CPU seconds"),
        ("megabytes", "peak over the model, MB"),
    ):
        middle = {side: statistics.median(one[key] for one in some) for side, some in runs.items() if some}
        ratio = f"{middle['peer'] / middle['ours']:.2f}" if len(middle) == 2 else ""
        cells = [f"{middle[side]:.1f}" if side in middle else "" for side in SIDES]
        lines.append(f"| {words} | {' | '.join(cells)} | {ratio} |")
    if shared is not None:
        lines += ["", f"Kept experts in common, layer by layer: {', '.join(f'{one:.2f}' for one in shared)}."]
    return "\n".join([*lines, ""])


def main() -> None:
    """Run both sides in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="environment of llm-compressor; without it our side alone")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--write", action="store_true", help="write results/reap.{md,json}")
    options = parser.parse_args()
    pythons = {"peer": None if options.peer is None else str(options.peer / "bin" / "python"), "ours": sys.executable}
    with tempfile.TemporaryDirectory() as name:
        folder, runs = Path(name) / "model", {side: list[dict[str, Any]]() for side in SIDES}
        make(
            folder,
            layers=options.layers,
            experts=options.experts,
            samples=options.samples,
            length=options.length,
        )
        for _ in range(options.repeats):
            for side, python in pythons.items():
                if python is not None:
                    runs[side].append(run(side, python, folder, Path(name) / f"{side}.json", options.threads))
                    print(side, runs[side][-1], file=sys.stderr, flush=True)
        both = all(runs.values())
        shared = agreement(Path(name) / "ours.json", Path(name) / "peer.json") if both else None
    text = page(runs, shared, "python benchmarks/reap.py " + " ".join(sys.argv[1:]))
    print(text)
    if options.write:
        (RESULTS / "reap.md").write_text(text, encoding="utf-8")
        (RESULTS / "reap.json").write_text(
            json.dumps({"runs": runs, "shared": shared}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
