"""What each rotation of SpinQuant brings, fixed and learned: SmolLM2 on held-out text, above the original's loss.

    python benchmarks/rotations.py [--steps 100] [--tokens 4096] [--only NAME ...] [--schemes NAME ...] [--write]
    python benchmarks/rotations.py --go-on --write --seconds 540      # in pieces: the lines that are not there yet

For every line the model is loaded anew, compressed, and judged by the mean negative log-likelihood of the same
passages.  W4A4 has weights with one scale a row and activations with one a token, symmetric; `mse` takes the scales of
weights with the least squared error; KV4 rounds keys and values for each token and head, too.  The head is left alone.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from compare.evaluate import simulate_cache
from compare.jobs import CACHE4

from coldpress import load_model, load_tokenizer, oneshot
from coldpress.arguments import DatasetArguments
from coldpress.calibration.dataset import load_batches

RESULTS = Path(__file__).parent / "results"
FIXED = ["R1", "R2", "R4"]
LINES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "R1": {"rotations": ["R1"]},
    "R2": {"rotations": ["R2"]},
    "R4": {"rotations": ["R4"]},
    "R1 R2": {"rotations": ["R1", "R2"]},
    "R1 R2 R4": {"rotations": FIXED},
    "R1 R2 R3 R4": {"rotations": [*FIXED, "R3"]},
    "R1 R2 R4, blocks of 64": {"rotations": FIXED, "transform_block_size": 64},
    "R1 R2 R4, random signs": {"rotations": FIXED, "randomize": True},
    "R1 R2 R4, random signs, seed 1": {"rotations": FIXED, "randomize": True},
    "R1 R2, learned": {"rotations": ["R1", "R2"], "learnable": True},
    "R1 R2 R4, learned": {"rotations": FIXED, "learnable": True},
    "R1 R2 R4, random signs, learned": {"rotations": FIXED, "randomize": True, "learnable": True},
    "R1 R2 R4, R4 learned too": {"rotations": FIXED, "learnable": FIXED},
    "R1 R2 R4, R4 learned too, blocks of 64": {"rotations": FIXED, "learnable": FIXED, "transform_block_size": 64},
}


def integers(weights: dict[str, Any], bits: int | None = None) -> dict[str, Any]:
    """Settings of a quantizer: symmetric weights in 4 bits, and inputs with one scale a token."""
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": True, **weights}}
    inputs = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return {"config_groups": {"group_0": group | ({"input_activations": inputs} if bits else {})}}


ROWS, MSE = {"strategy": "channel"}, {"strategy": "channel", "observer": "mse"}
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "W4A4": ("QuantizationModifier", integers(ROWS, 4)),
    "W4A4, mse": ("QuantizationModifier", integers(MSE, 4)),
    "W4A4, GPTQ": ("GPTQModifier", integers(ROWS, 4)),
    "W4A4KV4": ("QuantizationModifier", integers(ROWS, 4)),
    "W4A8": ("QuantizationModifier", integers(ROWS, 8)),
    "W4A16, groups of 64": ("QuantizationModifier", integers({"strategy": "group", "group_size": 64})),
    "NVFP4": ("QuantizationModifier", {"targets": ["Linear"], "scheme": "NVFP4"}),
}
USUAL = {
    "W4A4": [name for name in LINES if "R3" not in name],
    "W4A4, mse": [
        "none",
        "R1 R2 R4",
        "R1 R2 R4, random signs",
        "R1 R2 R4, learned",
        "R1 R2 R4, random signs, learned",
        "R1 R2 R4, R4 learned too",
    ],
    "W4A4, GPTQ": [
        "none",
        "R1 R2 R4",
        "R1 R2 R4, random signs",
        "R1 R2 R4, learned",
        "R1 R2 R4, random signs, learned",
        "R1 R2 R4, R4 learned too",
    ],
    "W4A4KV4": ["none", "R1 R2 R4", "R1 R2 R3 R4"],
    "W4A8": ["none", "R1 R2", "R1 R2 R4"],
    "W4A16, groups of 64": ["none", "R1 R2"],
    "NVFP4": ["none", "R1 R2", "R1 R2 R4"],
}
ORDER = [(scheme, name) for scheme, names in USUAL.items() for name in names]


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
    settings, (quantizer, arguments) = LINES[name], SCHEMES[scheme]
    if settings is not None and settings.get("learnable"):
        settings = {**settings, "num_steps": options.steps}
    modifiers = [] if settings is None else [{"SpinQuantModifier": settings}]
    modifiers.append({quantizer: {**arguments, "ignore": ["lm_head"]}})
    model = load_model("smollm2", dtype=torch.bfloat16, device="cpu")
    data = {"dataset": calibration, "num_calibration_samples": len(calibration), "max_seq_length": options.length}
    start, busy = time.perf_counter(), time.process_time()
    oneshot(model, json.dumps({"modifiers": modifiers}), **data, quiet=True, seed=int("seed 1" in name))
    seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    if "KV4" in scheme:
        simulate_cache(model, CACHE4)
    steps = {"steps": options.steps} if settings and settings.get("learnable") else {}
    return {"line": name, "scheme": scheme, **steps, "seconds": seconds, "cpu_seconds": cpu, "loss": loss(model, rows)}


def page(found: dict[str, Any]) -> str:
    """The table, and what else is needed to repeat it."""
    lines = ["# What each rotation brings", "", f"`{found['command']}`", ""]
    lines += [
        f"SmolLM2 in bfloat16; the original's loss is {found['original']:.3f} nats a token, on {found['tokens']} "
        f"tokens in passages of {found['length']}; learned in steps of one passage; torch {found['torch']}, "
        f"{found['threads']} threads, {found['machine']}.",
        "",
        "| scheme | rotations | loss above the original's | share of that without rotation | CPU seconds | seconds |",
        "|---|---|--:|--:|--:|--:|",
    ]
    plain = {row["scheme"]: row["above"] for row in found["lines"] if row["line"] == "none"}
    for row in found["lines"]:
        share = f"{row['above'] / plain[row['scheme']]:.0%}" if row["scheme"] in plain else ""
        name = row["line"] + (f", {row['steps']} steps" if "steps" in row else "")
        cells = [
            row["scheme"],
            name,
            f"{row['above']:.3f}",
            share,
            f"{row['cpu_seconds']:.0f}",
            f"{row['seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="of learned rotations, a sample each")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sample")
    parser.add_argument("--tokens", type=int, default=4096, help="of held-out text")
    parser.add_argument("--only", nargs="*", choices=LINES, default=list(LINES))
    parser.add_argument("--schemes", nargs="*", choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further line after that long")
    parser.add_argument("--go-on", action="store_true", help="keep the lines that the results have already")
    parser.add_argument("--write", action="store_true")
    return parser.parse_args()


def together(options: argparse.Namespace, original: float, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What is measured with, these lines, and with `--go-on` those that the results have already."""
    facts = {"original": original, "tokens": options.tokens, "length": options.length, "torch": torch.__version__}
    facts |= {"threads": torch.get_num_threads(), "machine": platform.machine()}
    command = f"python benchmarks/rotations.py --tokens {options.tokens} --length {options.length} --write"
    if options.go_on and (RESULTS / "rotations.json").exists():
        before = json.loads((RESULTS / "rotations.json").read_text())
        if any(before.get(key) != facts[key] for key in ("tokens", "length", "torch")):
            raise SystemExit("the lines that there are were measured on other text or by another torch: no --go-on")
        lines = [*(line for line in before["lines"] if key_of(line) not in map(key_of, lines)), *lines]
    return {"command": command, **facts, "lines": sorted(lines, key=lambda line: ORDER.index(key_of(line)))}


def key_of(line: dict[str, Any]) -> tuple[str, str]:
    """Scheme and name of a line."""
    return line["scheme"], line["line"]


def main() -> None:
    """Measure every line and print the table."""
    options, began = read_options(), time.perf_counter()
    tokenizer = load_tokenizer("smollm2")
    data = DatasetArguments(dataset="coldpress/short", num_calibration_samples=64, max_seq_length=options.length)
    every = torch.cat([batch["input_ids"] for batch in load_batches(data, tokenizer, 0)])
    count = options.tokens // options.length
    rows, calibration = every[:count], [{"input_ids": row.tolist()} for row in every[count:]]
    base = loss(load_model("smollm2", dtype=torch.bfloat16, device="cpu"), rows)
    found = together(options, base, [])
    for scheme, name in ORDER:
        known = any(key_of(line) == (scheme, name) for line in found["lines"])
        if known or scheme not in options.schemes or name not in options.only:
            continue
        if time.perf_counter() - began > options.seconds:
            break
        line = measure(name, scheme, options, calibration, rows)
        found = together(options, base, [*found["lines"], {**line, "above": line["loss"] - base}])
        print(json.dumps(line), flush=True)
        if options.write:
            (RESULTS / "rotations.md").write_text(page(found))
            (RESULTS / "rotations.json").write_text(json.dumps(found, indent=1) + "\n")
    print(page(found))


if __name__ == "__main__":
    main()
