"""Guidance and refined masks on a real model: which labels, which cut of token weights, and what each gains.

    python benchmarks/guided.py 3:none 3:sampled:.95 3:data:.95 --write

A line is FORM:LABELS:QUANTILE:POWER:GROUPS.
FORM is 4, 3 (bits, groups of 64), 2 (groups of 32) or c (4 bits, a scale a row) for GPTQ, with an s behind it for
`signed_scales`, and S0, S2, ... for SparseGPT 2:4 with so many `refine_passes`; LABELS is none, sampled or data; tokens
are weighted with `TokenWeight(quantile=QUANTILE, power=POWER)`, and rows in GROUPS, each 1 where it is left out.
The model is the embedded one in bfloat16, calibrated on 16 samples of 512 tokens of coldpress/short with seed 0.  KL is
to the original, on 4096 tokens of the held-out text of coldpress/short and as many of other passages of its
calibration text.  The reverse sweep of one kind of labels and groups is run once, for all lines.
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
FOUND: dict[TokenWeight, dict[str, Any]] = {}  # what the reverse sweep of a kind found, by layer
SWEEP = ReverseSweep.run


def modifier(form: str, labels: str, groups: int) -> dict[str, Any]:
    guided = {} if labels == "none" else {"guidance": labels}
    guided |= {} if groups == 1 else {"guidance_groups": groups}
    guided |= {"signed_scales": True} if form.endswith("s") else {}
    if form.startswith("S"):
        return {"SparseGPTModifier": {**SPARSE, "refine_passes": int(form[1:]), **guided}}
    return {"GPTQModifier": {**FORMS[form.removesuffix("s")], **guided}}


def run_once(self: ReverseSweep, statistics: Any, output: Any = None) -> None:
    """The sweep of a kind of labels and groups, the first time; then what it found."""
    wanted = dict.fromkeys(uncut(one) for found in self.wanted.values() for one in found)
    if fresh := tuple(one for one in wanted if one not in FOUND):
        store = GradientStore()
        parts = {name: getattr(self, name) for name in ("state", "pipeline", "read", "release", "progress")}
        SWEEP(ReverseSweep(**parts, wanted=dict.fromkeys(self.wanted, fresh), store=store), statistics)
        for one in fresh:
            FOUND[one] = {name: store.values[name, one] for name in self.wanted if (name, one) in store.values}
    for name, found in self.wanted.items():
        for one in found:
            self.store.values[name, one] = FOUND[uncut(one)][name]


def uncut(one: TokenWeight) -> TokenWeight:
    """What is collected of gradients, whichever cut and power come after."""
    return TokenWeight(labels=one.labels, groups=one.groups, group=one.group)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="+")
    parser.add_argument("--untimed", action="store_true", help="leave the seconds out: other things run meanwhile")
    parser.add_argument("--write", nargs="?", const="guided", help="write results/guided.{md,json}, or another name")
    options = parser.parse_args()
    original = Remembered(load_model("smollm2", dtype=torch.bfloat16, device="cpu"))
    tokenizer, (samples, others), rows = load_tokenizer("smollm2", original.model), divided(), []
    for line in options.lines:
        form, labels, *more = line.split(":")
        quantile, power, groups = [*more, "1", "1", "1"][:3]
        model = load_model("smollm2", dtype=torch.bfloat16, device="cpu")
        weights = partial(TokenWeight, quantile=float(quantile), power=float(power))
        start = time.process_time()
        with mock.patch.object(guidance, "TokenWeight", weights), mock.patch.object(ReverseSweep, "run", run_once):
            oneshot(
                model,
                json.dumps({"modifiers": [modifier(form, labels, int(groups))]}),
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
        stem = RESULTS / options.write
        stem.with_suffix(".md").write_text(text, encoding="utf-8")
        stem.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


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
