"""What each choice of a modifier costs and gains, one at a time, on a real model: seconds, perplexity, mean KL.

    python benchmarks/choices.py gptq --write

The model is the embedded one in bfloat16, calibrated on 32 samples of 512 tokens of coldpress/short with seed 0.
Perplexity and KL to the original are those of the beginning of the held-out text of coldpress/short, and once more
those of passages of its calibration text that are not among the samples: constants such as GPTQ's least range were
chosen on the former.
Every line is one `oneshot` in this process, with what the line names changed against the first one.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from remembered import Remembered

from coldpress import divergence, load_model, load_tokenizer, oneshot, perplexity
from coldpress.calibration import short

RESULTS = Path(__file__).parent / "results"
SAMPLES = 32
TOKENS = 8192  # of each of the two texts
INT4 = {"scheme": "W4A16", "group_size": 64, "ignore": ["lm_head"]}
INT3 = {
    "ignore": ["lm_head"],
    "config_groups": {"all": {"targets": ["Linear"], "weights": {"num_bits": 3, "group_size": 64}}},
}
INT2 = {
    "ignore": ["lm_head"],
    "config_groups": {"all": {"targets": ["Linear"], "weights": {"num_bits": 2, "group_size": 32}}},
}
ASYM4 = {**INT4, "scheme": "W4A16_ASYM"}
ASYM3 = {
    "ignore": ["lm_head"],
    "config_groups": {"all": {"targets": ["Linear"], "weights": {"num_bits": 3, "group_size": 64, "symmetric": False}}},
}
INT8 = {"scheme": "W8A8", "ignore": ["lm_head"]}
SPARSE = {"mask_structure": "2:4", "ignore": ["lm_head"]}
Line = tuple[str, list[dict[str, dict[str, Any]]], dict[str, Any]]  # label, modifiers, arguments of oneshot


def _gptq(settings: dict[str, Any], *, magr_alpha: float) -> list[Line]:
    """GPTQ with each of its choices, the first two to compare with; those that are off by default come last."""

    def line(label: str, arguments: dict[str, Any] | None = None, **changed: Any) -> Line:
        return label, [{"GPTQModifier": {**settings, **changed}}], arguments or {}

    return [
        line("as it is"),
        ("rounding to nearest instead", [{"QuantizationModifier": settings}], {}),
        line("scales from the range: `weight_observer: memoryless_minmax`", weight_observer="memoryless_minmax"),
        line("scales from plain squared errors: `weight_observer: mse`", weight_observer="mse"),
        line("columns from left to right: `actorder: null`", actorder=None),
        line("blocks as a whole: `true_sequential=False`", {"true_sequential": False}),
        line("scales fitted again: `refit_scales: true`", refit_scales=True),
        line("`correction: gptaq`", correction="gptaq"),
        line("`correction: qronos`", correction="qronos"),
        line("`correction: foem`", correction="foem"),
        line("`correction: foem`, `foem_beta: 0.05`", correction="foem", foem_beta=0.05),
        line(f"MagR first: `magr_alpha: {magr_alpha}`", magr_alpha=magr_alpha),
    ]


def _foem(settings: dict[int, dict[str, Any]]) -> list[Line]:
    """GPTQ, and with each correction, for several bit widths."""
    choices: dict[str, dict[str, Any]] = {
        "GPTQ": {},
        "`correction: foem`": {"correction": "foem"},
        "`correction: foem`, `foem_beta: 0.05`": {"correction": "foem", "foem_beta": 0.05},
        "`correction: gptaq`": {"correction": "gptaq"},
        "`correction: qronos`": {"correction": "qronos"},
    }
    return [
        (f"{bits} bits, {label}", [{"GPTQModifier": {**given, **changed}}], {})
        for bits, given in settings.items()
        for label, changed in choices.items()
    ]


def _options(lines: list[Line]) -> list[Line]:
    """Of GPTQ's lines the two to compare with, and what is off by default."""
    return lines[:2] + lines[6:]


def _autoround(settings: dict[str, Any], *, iters: int) -> list[Line]:
    """GPTQ, and AutoRound from each of its starts."""
    return [
        ("GPTQ", [{"GPTQModifier": settings}], {}),
        *(
            (f"`start: {start}`", [{"AutoRoundModifier": {**settings, "iters": iters, "start": start}}], {})
            for start in ("rtn", "searched", "gptq")
        ),
    ]


def _awq(settings: dict[str, Any]) -> list[Line]:
    """AWQ before rounding, with each of its choices."""

    def line(label: str, arguments: dict[str, Any] | None = None, **changed: Any) -> Line:
        return label, [{"AWQModifier": changed}, {"QuantizationModifier": settings}], arguments or {}

    return [
        line("as it is, then rounding"),
        ("rounding alone", [{"QuantizationModifier": settings}], {}),
        line("`objective: block`", objective="block"),
        line("`clip: false`", clip=False),
        line("`duo_scaling: both`", duo_scaling="both"),
        line("later blocks see compressed ones: `propagate_error=True`", {"propagate_error": True}),
    ]


def _before(modifier: dict[str, dict[str, Any]], settings: dict[str, dict[str, Any]]) -> list[Line]:
    """Each of some quantizers alone, and after a modifier."""
    found: list[Line] = []
    for label, quantizer in settings.items():
        found += [(label, [quantizer], {}), (f"{label}, scales moved first", [modifier, quantizer], {})]
    return found


def _smoothquant(quantizer: dict[str, dict[str, Any]]) -> list[Line]:
    settings: list[Any] = [0.5, 0.8, "auto"]
    return [
        ("without SmoothQuant", [quantizer], {}),
        *(
            (f"`smoothing_strength: {x}`", [{"SmoothQuantModifier": {"smoothing_strength": x}}, quantizer], {})
            for x in settings
        ),
        ("LogarithmicEqualizationModifier", [{"LogarithmicEqualizationModifier": {}}, quantizer], {}),
        (
            "`smoothing_strength: 0.8`, later blocks see compressed ones: `propagate_error=True`",
            [{"SmoothQuantModifier": {"smoothing_strength": 0.8}}, quantizer],
            {"propagate_error": True},
        ),
    ]


GROUPS: dict[str, list[Line]] = {
    "awq": _awq(ASYM4),
    "awq-group-32": _awq({**INT4, "group_size": 32})[:4],
    "awq-3bit": _awq(ASYM3)[:4],
    "awq-then": _before(
        {"AWQModifier": {}},
        {
            "GPTQ, 4 bits": {"GPTQModifier": INT4},
            "NVFP4A16": {"QuantizationModifier": {"scheme": "NVFP4A16", "ignore": ["lm_head"]}},
            "FP8_DYNAMIC": {"QuantizationModifier": {"scheme": "FP8_DYNAMIC", "ignore": ["lm_head"]}},
        },
    ),
    "smoothquant": _smoothquant({"QuantizationModifier": INT8}),
    "smoothquant-gptq": _smoothquant({"GPTQModifier": INT8})[:2],
    "gptq": _gptq(INT4, magr_alpha=0.00075),
    "gptq-3bit": _options(_gptq(INT3, magr_alpha=0.00075)),
    "foem": _foem({4: INT4, 3: INT3}),
    "foem-2bit": _foem({2: INT2}),
    "gptq-2bit": _options(_gptq(INT2, magr_alpha=0.00075)),
    "gptq-channel": _options(_gptq({**INT4, "group_size": -1}, magr_alpha=0.0075)),
    "autoround": _autoround(INT4, iters=50),
    "autoround-3bit": _autoround(INT3, iters=50),
    "autoround-2bit": _autoround(INT2, iters=50),
    "pruning": [
        ("SparseGPT 2:4", [{"SparseGPTModifier": SPARSE}], {}),
        ("Wanda 2:4", [{"WandaModifier": SPARSE}], {}),
        ("magnitude 2:4", [{"MagnitudePruningModifier": SPARSE}], {}),
        ("SparseGPT 2:4, then GPTQ", [{"SparseGPTModifier": SPARSE}, {"GPTQModifier": INT4}], {}),
        ("SparseGPT 2:4, then rounding", [{"SparseGPTModifier": SPARSE}, {"QuantizationModifier": INT4}], {}),
    ],
}


def measure(lines: list[Line], *, samples: int, tokens: int) -> list[dict[str, Any]]:
    """The original, and then every line."""
    original = Remembered(load_model("smollm2", dtype=torch.bfloat16, device="cpu"))
    tokenizer = load_tokenizer("smollm2", original.model)
    passages, others = divided(samples)
    found = [{"choice": "the original", **costs(original, None, tokenizer, others, tokens)}]
    for label, modifiers, arguments in lines:
        model = load_model("smollm2", dtype=torch.bfloat16, device="cpu")
        start = time.perf_counter()
        oneshot(
            model,
            json.dumps({"modifiers": modifiers}),
            tokenizer=tokenizer,
            dataset=passages,
            shuffle_calibration_samples=False,
            num_calibration_samples=samples,
            max_seq_length=512,
            quiet=True,
            **arguments,
        )
        seconds = time.perf_counter() - start
        found.append(
            {"choice": label, "seconds": seconds, **costs(Remembered(model), original, tokenizer, others, tokens)}
        )
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def divided(samples: int = SAMPLES) -> tuple[list[str], list[str]]:
    """The passages that `oneshot` takes by itself with seed 0, and the others."""
    texts = [row["text"] for row in short.load("calibration")]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [texts[index] for index in order]
    return shuffled[:samples], shuffled[samples:]


def costs(model: Any, original: Any, tokenizer: Any, others: list[str], tokens: int) -> dict[str, float]:
    """Perplexity and KL of the held-out text, and of other passages."""
    texts: dict[str, dict[str, Any]] = {"": {}, "other_": {"text": others}}
    found = {}
    for prefix, where in texts.items():
        found[f"{prefix}perplexity"] = perplexity(model, tokenizer, max_tokens=tokens, **where).value
        if original is not None:
            distance = divergence(model, original, tokenizer, max_tokens=tokens, **where)
            found |= {f"{prefix}kl": distance.kl, f"{prefix}kl_error": distance.kl_standard_error}
    return found


def table(found: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The outcome for a person."""
    group, less = options.group, " --untimed" if options.untimed else ""
    less += f" --samples {options.samples}" if options.samples != SAMPLES else ""
    less += f" --tokens {options.tokens}" if options.tokens != TOKENS else ""
    lines = [
        f"# Choices of {group}",
        "",
        f"`python benchmarks/choices.py {group} --write{less}`",
        "",
        f"SmolLM2-135M in bfloat16, {options.samples} x 512 tokens, {os.cpu_count()} cores; perplexity and mean KL to "
        f"the original on {options.tokens} tokens of held-out text, as many of other passages.",
        "",
        "| choice | seconds | perplexity | KL | perplexity, other passages | KL, other passages |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for line in found:
        cells = [line["choice"], f"{line['seconds']:.0f}" if "seconds" in line else ""]
        for prefix in ("", "other_"):
            kl = f"{line[f'{prefix}kl']:.4f} ± {line[f'{prefix}kl_error']:.4f}" if f"{prefix}kl" in line else ""
            cells += [f"{line[f'{prefix}perplexity']:.2f}", kl]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", choices=list(GROUPS), help=", ".join(GROUPS))
    parser.add_argument("--write", action="store_true", help="write results/choices-GROUP.{md,json}")
    parser.add_argument("--untimed", action="store_true", help="leave the seconds out: other things run meanwhile")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of calibration data")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of each of the two texts that costs are taken on")
    options = parser.parse_args()
    found = measure(GROUPS[options.group], samples=options.samples, tokens=options.tokens)
    if options.untimed:
        found = [{key: value for key, value in line.items() if key != "seconds"} for line in found]
    text = table(found, options)
    print(text)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        stem = RESULTS / f"choices-{options.group}"
        stem.with_suffix(".md").write_text(text, encoding="utf-8")
        stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
