"""Guidance and refined masks on a real model: which labels, which cut of token weights, and what each gains.

    python benchmarks/guided.py 3:none 3:sampled:.95 3:data:.95 --write

A line is FORM:LABELS:QUANTILE:POWER.  FORM is 4, 3 (bits, groups of 64), 2 (groups of 32) or c (4 bits, a scale a row)
for GPTQ, and S0, S2, ... for SparseGPT 2:4 with so many `refine_passes`; LABELS is none, sampled or data; tokens are
weighted with `TokenWeight(quantile=QUANTILE, power=POWER)`, both 1 where they are left out.
The model is the embedded one in bfloat16, calibrated on 16 samples of 512 tokens of coldpress/short with seed 0.  KL is
to the original, on 4096 tokens of the held-out text of coldpress/short and as many of other passages of its
calibration text.  The reverse sweep of one kind of labels is run once, and what it finds is used for all lines.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from choices import INT2, INT3, INT4, SPARSE, divided
from remembered import Remembered

from coldpress import divergence, load_model, load_tokenizer, oneshot
from coldpress.bases import guidance
from coldpress.calibration.gradient_store import GradientStore
from coldpress.calibration.statistics import TokenWeight
from coldpress.run.reverse import ReverseSweep

RESULTS = Path(__file__).parent / "results"
SAMPLES, TOKENS = 16, 4096
FORMS = {"4": INT4, "3": INT3, "2": INT2, "c": {**INT4, "group_size": -1}}
FOUND: dict[str, dict[str, Any]] = {}  # what the reverse sweep of a kind of labels found, by layer
SECONDS: dict[str, float] = {}
SWEEP = ReverseSweep.run


def modifier(form: str, labels: str) -> dict[str, Any]:
    guided = {} if labels == "none" else {"guidance": labels}
    if form.startswith("S"):
        return {"SparseGPTModifier": {**SPARSE, "refine_passes": int(form[1:]), **guided}}
    return {"GPTQModifier": {**FORMS[form], **guided}}


def run_once(self: ReverseSweep, statistics: Any, output: Any = None) -> None:
    """The sweep of a kind of labels, the first time; then what it found."""
    for labels in {one.labels for found in self.wanted.values() for one in found}:
        if labels not in FOUND:
            whole, store = TokenWeight(labels=labels), GradientStore()
            start = time.process_time()
            parts = {name: getattr(self, name) for name in ("state", "pipeline", "read", "release", "progress")}
            SWEEP(ReverseSweep(**parts, wanted={name: (whole,) for name in self.wanted}, store=store), statistics)
            SECONDS[labels] = time.process_time() - start
            FOUND[labels] = {name: store.values[name, whole] for name in self.wanted if (name, whole) in store.values}
    for name, found in self.wanted.items():
        for one in found:
            self.store.values[name, one] = FOUND[one.labels][name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="+")
    parser.add_argument("--untimed", action="store_true", help="leave the seconds out: other things run meanwhile")
    parser.add_argument("--write", action="store_true", help="write results/guided.{md,json}")
    options = parser.parse_args()
    original = Remembered(load_model("smollm2", dtype=torch.bfloat16, device="cpu"))
    tokenizer, (samples, others), rows = load_tokenizer("smollm2", original.model), divided(), []
    for line in options.lines:
        form, labels, quantile, power = [*line.split(":"), "1", "1"][:4]
        model = load_model("smollm2", dtype=torch.bfloat16, device="cpu")
        weights = partial(TokenWeight, quantile=float(quantile), power=float(power))
        start = time.process_time()
        with mock.patch.object(guidance, "TokenWeight", weights), mock.patch.object(ReverseSweep, "run", run_once):
            oneshot(
                model,
                json.dumps({"modifiers": [modifier(form, labels)]}),
                tokenizer=tokenizer,
                dataset=samples,
                shuffle_calibration_samples=False,
                num_calibration_samples=SAMPLES,
                max_seq_length=512,
                quiet=True,
            )
        seconds = time.process_time() - start
        texts: dict[str, dict[str, Any]] = {"kl": {}, "other_kl": {"text": others}}
        kls = {key: divergence(model, original, tokenizer, max_tokens=TOKENS, **text).kl for key, text in texts.items()}
        rows.append({"line": line, **kls, **({} if options.untimed else {"cpu_seconds": seconds})})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    text = table(rows)
    print(text)
    if options.write:
        (RESULTS / "guided.md").write_text(text, encoding="utf-8")
        (RESULTS / "guided.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    """The outcome for a person."""
    lines = [
        "# Guidance and refined masks",
        "",
        f"`python benchmarks/guided.py {' '.join(row['line'] for row in rows)}`",
    ]
    lines += ["", f"SmolLM2-135M in bfloat16, {SAMPLES} x 512 tokens; mean KL to the original on {TOKENS} tokens each."]
    lines += ["", "| line | KL, held-out text | KL, other passages |", "|---|--:|--:|"]
    lines += [f"| {row['line']} | {row['kl']:.4f} | {row['other_kl']:.4f} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
