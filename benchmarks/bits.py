"""Bits where they count: does the expected cost rank layers, and are mixed schemes better than uniform ones?

    python benchmarks/bits.py rank --write       expected cost of single layers against their measured KL
    python benchmarks/bits.py mixed --write      AutoBits at 3.5 and 4.5 bits against uniform bits and a rule of thumb
    python benchmarks/bits.py autoscheme --write AutoBits and AutoRound's AutoScheme at one size, from the same text

AutoScheme runs in `.venv-peer` (`make .venv-peer/.stamp`), with the layers that engines fuse in one; what it chooses is
rounded as what AutoBits chooses.
The model is the embedded one in bfloat16, calibrated on samples of 512 tokens of coldpress/short with seed 0.
KL is to the original, on the beginning of the held-out text of coldpress/short.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from attrs import frozen
from choices import divided
from remembered import Remembered

from coldpress import divergence, load_model, load_tokenizer, oneshot
from coldpress_autobits import AutoBitsModifier
from coldpress_autobits.modifier import rounded

RESULTS = Path(__file__).parent / "results"
PEER = Path(__file__).parent.parent / ".venv-peer" / "bin" / "python"
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


def autoscheme(options: argparse.Namespace) -> tuple[str, Any]:
    """What AutoScheme and AutoBits choose, at the size that AutoScheme's choice has, both rounded to nearest."""
    original, rows = Remembered(loaded()), []
    tokenizer = load_tokenizer("smollm2", original.model)
    for family in FAMILIES:
        for target, found in ask_autoscheme(original.model, tokenizer, family, options).items():
            weights = {name: original.model.get_submodule(name).weight.numel() for name in found["layers"]}
            widths = {name: one["bits"] for name, one in found["layers"].items()}
            bits = sum(count * (widths[name] + family.scale) for name, count in weights.items()) / sum(weights.values())
            groups: dict[str, list[str]] = {}
            for name, width in widths.items():
                groups.setdefault(family.name.format(width), []).append(name)
            settings = {"group_size": family.group, "ignore": ["lm_head"]}
            first = family.name.format(family.widths[0])
            choose = bits_modifier(target_bits=bits + 1e-6, candidates=family.names(), group_size=family.group)
            lines = {
                "AutoScheme": [{"QuantizationModifier": {"scheme": groups, **settings}}],
                "AutoBits": [choose, {"QuantizationModifier": {"scheme": first, **settings}}],
            }
            for label, modifiers in lines.items():
                model = loaded()
                seconds = compress(model, modifiers, options, tokenizer)
                kl = divergence(model, original, tokenizer, max_tokens=options.tokens).kl
                rows.append({"candidates": family.names(), "asked": target, "bits": bits, "choice": label, "kl": kl})
                seconds = found["cpu_seconds"] if label == "AutoScheme" else seconds
                rows[-1] |= {} if options.untimed else {"cpu_seconds": seconds}
                print(rows[-1], file=sys.stderr, flush=True)
    more = [] if options.untimed else ["CPU seconds"]
    heads = ["candidates", "AutoScheme's target", "bits a weight", "choice", "KL", *more]
    table = [f"| {' | '.join(heads)} |", f"|---|--:|--:|---|--:|{'--:|' * len(more)}"]
    for row in rows:
        spent = [f"{row['cpu_seconds']:.0f}"] if more else []
        names = ", ".join(row["candidates"])
        cells = [names, row["asked"], f"{row['bits']:.4f}", row["choice"], f"{row['kl']:.4f}", *spent]
        table.append(f"| {' | '.join(cells)} |")
    head = f"{options.samples} x 512 tokens, KL on {options.tokens} tokens; all rounded to nearest"
    head += "." if options.untimed else "; seconds of AutoScheme are those of choosing, of AutoBits those of the run."
    return f"{head}\n\n" + "\n".join(table) + "\n", rows


@frozen
class Family:
    """Candidates of one kind, and at which sizes they are chosen from.

    Attributes:
        name: of a preset, by its bits.
        widths: bits of the candidates.
        group: weights that share a scale, where that is free.
        scale: bits of a scale for each weight.
        theirs: a candidate as AutoRound has it, by its bits.
        targets: of AutoScheme, in its own count of bits.
    """

    name: str
    widths: tuple[int, ...]
    group: int | None
    scale: float
    theirs: Callable[[int], Any]
    targets: tuple[float, ...]

    def names(self) -> list[str]:
        """Of the candidates."""
        return [self.name.format(width) for width in self.widths]


FAMILIES = [
    Family(
        "W{}A16",
        (3, 4, 8),
        GROUP,
        16 / GROUP,
        lambda bits: {"bits": bits, "group_size": GROUP, "act_bits": 16},
        (3.5, 4.5),
    ),
    Family("MXFP{}", (4, 8), None, 8 / 32, lambda bits: f"MXFP{bits}", (4.75, 5.5)),
]


def ask_autoscheme(model: Any, tokenizer: Any, family: Family, options: argparse.Namespace) -> dict[str, Any]:
    """By target, the CPU seconds that AutoScheme takes and what it gives each layer."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        lines = [json.dumps({"text": text}) for text in divided()[0][: options.samples]]
        (folder / "text.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        request = {
            "model": str(folder / "model"),
            "text": str(folder / "text.jsonl"),
            "samples": options.samples,
            "length": 512,
            "bits": family.targets,
            "options": [family.theirs(bits) for bits in family.widths],
            "answer": str(folder / "answer.json"),
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        script = Path(__file__).parent / "compare" / "autoscheme.py"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "HOME": name}
        subprocess.run([PEER, script, folder / "request.json"], check=True, env=environment, stdout=sys.stderr)
        return json.loads((folder / "answer.json").read_text(encoding="utf-8"))


def uniform(name: str, bits: int) -> dict[str, Any]:
    weights = {"num_bits": bits, "group_size": GROUP}
    return {name: {"ignore": ["lm_head"], "config_groups": {"all": {"targets": ["Linear"], "weights": weights}}}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rank", "mixed", "autoscheme"])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--quantizers", nargs="+", default=["QuantizationModifier", "GPTQModifier"])
    parser.add_argument("--only", nargs="+", help="lines that begin so")
    parser.add_argument("--untimed", action="store_true", help="leave the seconds out: other things run meanwhile")
    parser.add_argument("--write", action="store_true", help="write results/bits-WHAT.{md,json}")
    options = parser.parse_args()
    text, found = {"rank": rank, "mixed": mixed, "autoscheme": autoscheme}[options.what](options)
    command = " ".join(["python benchmarks/bits.py", *sys.argv[1:]])
    head = f"# Bits: {options.what}\n\n`{command}`\n\nSmolLM2-135M in bfloat16, "
    print(head + text)
    if options.write:
        stem = RESULTS / f"bits-{options.what}"
        stem.with_suffix(".md").write_text(head + text, encoding="utf-8")
        stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
