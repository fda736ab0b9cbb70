"""Bits where they count: does the expected cost rank layers, and are mixed schemes better than uniform ones?

    python benchmarks/bits.py rank --write       expected cost of single layers against their measured KL
    python benchmarks/bits.py mixed --write      AutoBits at 3.5 and 4.5 bits against uniform bits and a rule of thumb

The model is the embedded one in bfloat16, calibrated on samples of 512 tokens of coldpress/short with seed 0.
KL is to the original, on the beginning of the held-out text of coldpress/short.
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
from choices import divided
from remembered import Remembered

from coldpress import divergence, load_model, load_tokenizer, oneshot
from coldpress_autobits import AutoBitsModifier
from coldpress_autobits.modifier import rounded

RESULTS = Path(__file__).parent / "results"
CANDIDATES = [3, 4, 8]
GROUP = 64


def loaded() -> Any:
    return load_model("smollm2", dtype=torch.bfloat16, device="cpu")


def compress(model: Any, modifiers: list[dict[str, Any]], options: argparse.Namespace, tokenizer: Any) -> float:
    """Compress in place; CPU seconds."""
    start = time.process_time()
    oneshot(
        model,
        json.dumps({"modifiers": modifiers}),
        tokenizer=tokenizer,
        dataset=divided()[0],
        shuffle_calibration_samples=False,
        num_calibration_samples=options.samples,
        max_seq_length=512,
        quiet=True,
    )
    return time.process_time() - start


def bits_modifier(**settings: Any) -> dict[str, Any]:
    return {"AutoBitsModifier": {"candidates": CANDIDATES, "group_size": GROUP, "ignore": ["lm_head"], **settings}}


def quantizer(name: str) -> dict[str, Any]:
    return {name: {"scheme": "W4A16", "group_size": GROUP, "ignore": ["lm_head"]}}


def rank(options: argparse.Namespace) -> tuple[str, Any]:
    """Each of some layers alone in three bits, one scale a row: expected cost and measured KL."""
    original, measured = Remembered(loaded()), {}
    tokenizer = load_tokenizer("smollm2", original.model)
    decide = AutoBitsModifier.decide

    def noting(self: AutoBitsModifier, state: Any, found: Any) -> Any:
        measured.update({name: one for stage in found for name, one in stage.items()})
        return decide(self, state, found)

    settings = {"candidates": [3, 4], "group_size": -1, "target_bits": 5.0, "num_check_tokens": 0, "rounds": True}
    with mock.patch.object(AutoBitsModifier, "decide", noting):
        seconds = compress(loaded(), [bits_modifier(**settings)], options, tokenizer)
    model = loaded()
    scheme = AutoBitsModifier(**settings).schemes()[0]
    names = sorted(measured)
    chosen = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))[: options.layers].tolist()
    pairs = []
    for index in chosen:
        module = model.get_submodule(names[index])
        kept = module.weight.data
        module.weight.data = rounded(kept, scheme, None).to(kept.dtype)
        kl = divergence(model, original, tokenizer, max_tokens=options.tokens).kl
        module.weight.data = kept
        pairs.append({"layer": names[index], "expected": measured[names[index]]["costs"][0], "measured": kl})
        print(pairs[-1], file=sys.stderr, flush=True)
    expected = torch.tensor([pair["expected"] for pair in pairs])
    found = torch.tensor([pair["measured"] for pair in pairs])
    rho = spearman(expected, found)
    r = float(torch.corrcoef(torch.stack([expected.log(), found.clamp(min=1e-9).log()]))[0, 1])
    spent = "" if options.untimed else f" in {seconds:.0f} CPU seconds"
    text = (
        f"{len(pairs)} linear layers, each alone in int3 with one scale a row; KL on {options.tokens} tokens, "
        f"expected from {options.samples} x 512 others{spent}.\n\n"
        f"Spearman's rank correlation {rho:.2f}, Pearson's of the logarithms {r:.2f}; the median of expected by "
        f"measured is {float((expected / found).median()):.2f}.\n"
    )
    return text, {"spearman": rho, "pearson_of_logs": r, "pairs": pairs}


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    """The correlation of ranks."""
    ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])


def mixed(options: argparse.Namespace) -> tuple[str, Any]:
    """AutoBits, a rule of thumb of the same size and uniform bits, by rounding and by GPTQ."""
    original = Remembered(loaded())
    tokenizer, rows = load_tokenizer("smollm2", original.model), []
    for name in options.quantizers:
        feedback = name == "GPTQModifier"
        lines = {f"uniform int{bits}": [uniform(name, bits)] for bits in (3, 4)}
        for bits in (3.5, 4.5):
            choose = partial(bits_modifier, target_bits=bits, error_feedback=feedback)
            lines[f"AutoBits {bits}"] = [choose(), quantizer(name)]
            lines[f"both ends first, {bits}"] = [choose(), quantizer(name)]
        for label, modifiers in lines.items():
            if options.only and not any(label.startswith(one) for one in options.only):
                continue
            model = loaded()
            with mock.patch.object(AutoBitsModifier, "_plans", only_ends if label.startswith("both") else PLANS):
                seconds = compress(model, modifiers, options, tokenizer)
            kl = divergence(model, original, tokenizer, max_tokens=options.tokens).kl
            spent = {} if options.untimed else {"cpu_seconds": seconds}
            rows.append({"quantizer": name, "choice": label, "kl": kl, **spent})
            print(rows[-1], file=sys.stderr, flush=True)
    more = [] if options.untimed else ["CPU seconds"]
    table = [f"| {' | '.join(['quantizer', 'choice', 'KL', *more])} |", f"|---|---|--:|{'--:|' * len(more)}"]
    for row in rows:
        spent = [f"{row['cpu_seconds']:.0f}"] if more else []
        cells = [row["quantizer"], row["choice"], f"{row['kl']:.4f}", *spent]
        table.append(f"| {' | '.join(cells)} |")
    head = f"{options.samples} x 512 tokens; candidates {CANDIDATES}, group {GROUP}; KL on {options.tokens} tokens.\n\n"
    return head + "\n".join(table) + "\n", rows


PLANS = AutoBitsModifier._plans


def only_ends(self: AutoBitsModifier, *given: Any) -> Any:
    """Of the plans, the rule of thumb."""
    return [plan for plan in PLANS(self, *given) if plan.name == "both ends first"]


def uniform(name: str, bits: int) -> dict[str, Any]:
    weights = {"num_bits": bits, "group_size": GROUP}
    return {name: {"ignore": ["lm_head"], "config_groups": {"all": {"targets": ["Linear"], "weights": weights}}}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rank", "mixed"])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--quantizers", nargs="+", default=["QuantizationModifier", "GPTQModifier"])
    parser.add_argument("--only", nargs="+", help="lines that begin so")
    parser.add_argument("--untimed", action="store_true", help="leave the seconds out: other things run meanwhile")
    parser.add_argument("--write", action="store_true", help="write results/bits-WHAT.{md,json}")
    options = parser.parse_args()
    text, found = {"rank": rank, "mixed": mixed}[options.what](options)
    command = " ".join(["python benchmarks/bits.py", *sys.argv[1:]])
    head = f"# Bits: {options.what}\n\n`{command}`\n\nSmolLM2-135M in bfloat16, "
    print(head + text)
    if options.write:
        stem = RESULTS / f"bits-{options.what}"
        stem.with_suffix(".md").write_text(head + text, encoding="utf-8")
        stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
