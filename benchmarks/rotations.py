"""What each rotation of SpinQuant brings, fixed and learned: SmolLM2 by rounding to nearest, on held-out text.

    python benchmarks/rotations.py [--steps 100] [--tokens 4096] [--only NAME ...] [--write]

Weights have one scale a row, activations one a token, symmetric; the head is left alone.  For every line the model is
loaded anew, compressed, and judged by the mean negative log-likelihood of the same passages, above the original's.
"""

import argparse
import json
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

from coldpress import load_model, load_tokenizer, oneshot
from coldpress.arguments import DatasetArguments
from coldpress.calibration.dataset import load_batches

RESULTS = Path(__file__).parent / "results"
LINES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "R1": {"rotations": ["R1"]},
    "R1 R2": {"rotations": ["R1", "R2"]},
    "R1 R2, random signs": {"rotations": ["R1", "R2"], "randomize": True},
    "R4": {"rotations": ["R4"]},
    "R1 R2 R4": {"rotations": ["R1", "R2", "R4"]},
    "R1 R2 R4, blocks of 64": {"rotations": ["R1", "R2", "R4"], "transform_block_size": 64},
    "R1 R2, learned": {"rotations": ["R1", "R2"], "learnable": True},
    "R1 R2 R4, learned": {"rotations": ["R1", "R2", "R4"], "learnable": True},
}
SCHEMES = {"W4A4": (4, 4), "W4A8": (4, 8)}


def quantizer(bits: tuple[int, int]) -> dict[str, Any]:
    """Round to nearest."""
    weights = {"num_bits": bits[0], "type": "int", "symmetric": True, "strategy": "channel"}
    inputs = {"num_bits": bits[1], "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"QuantizationModifier": {"config_groups": {"group_0": group}, "ignore": ["lm_head"]}}


@torch.no_grad()
def loss(model: Any, rows: torch.Tensor) -> float:
    """Nats a token of these passages, [N, T]."""
    total = 0.0
    for row in rows:
        logits = model(row[None]).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum"))
    return total / rows[:, 1:].numel()


def measure(
    name: str, scheme: str, options: argparse.Namespace, calibration: Any, rows: torch.Tensor
) -> dict[str, Any]:
    """One line."""
    settings = LINES[name]
    if settings is not None and settings.get("learnable"):
        settings = {**settings, "num_steps": options.steps}
    modifiers = ([] if settings is None else [{"SpinQuantModifier": settings}]) + [quantizer(SCHEMES[scheme])]
    model = load_model("smollm2", dtype=torch.bfloat16, device="cpu")
    start, busy = time.perf_counter(), time.process_time()
    oneshot(model, json.dumps({"modifiers": modifiers}), dataset=calibration, quiet=True, max_seq_length=options.length)
    seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    return {"line": name, "scheme": scheme, "seconds": seconds, "cpu_seconds": cpu, "loss": loss(model, rows)}


def main() -> None:
    """Measure every line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="of learned rotations, a sample each")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sample")
    parser.add_argument("--tokens", type=int, default=4096, help="of held-out text")
    parser.add_argument("--only", nargs="*", choices=LINES, default=list(LINES))
    parser.add_argument("--schemes", nargs="*", choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    tokenizer = load_tokenizer("smollm2")
    data = DatasetArguments(dataset="coldpress/short", num_calibration_samples=64, max_seq_length=options.length)
    every = torch.cat([batch["input_ids"] for batch in load_batches(data, tokenizer, 0)])
    count = options.tokens // options.length
    rows, calibration = every[:count], [{"input_ids": row.tolist()} for row in every[count:]]
    base = loss(load_model("smollm2", dtype=torch.bfloat16, device="cpu"), rows)
    found = []
    for scheme in options.schemes:
        for name in options.only:
            found.append(measure(name, scheme, options, calibration, rows))
            found[-1]["above"] = found[-1]["loss"] - base
            print(json.dumps(found[-1]), flush=True)
    lines = [
        "# What each rotation brings",
        "",
        f"`python benchmarks/rotations.py {shlex.join(sys.argv[1:])}`",
        "",
    ]
    lines += [f"SmolLM2, round to nearest; the original's loss is {base:.3f} nats a token; torch {torch.__version__}, "
              f"{torch.get_num_threads()} threads, {platform.machine()}.", ""]  # fmt: skip
    lines += ["| rotations | scheme | loss above the original's | CPU seconds |", "|---|---|--:|--:|"]
    lines += [f"| {row['line']} | {row['scheme']} | {row['above']:.3f} | {row['cpu_seconds']:.0f} |" for row in found]
    if options.write:
        (RESULTS / "rotations.md").write_text("\n".join(lines) + "\n")
        (RESULTS / "rotations.json").write_text(json.dumps({"original": base, "lines": found}, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
