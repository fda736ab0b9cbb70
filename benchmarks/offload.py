"""Peak memory of a run whose activations are larger than its model, kept in memory and on disk.

    python benchmarks/offload.py --write

The model is a random Llama of a few megabytes; the calibration data are many long sequences.
Each case runs in a process of its own; its peak is VmHWM of /proc/self/status, the largest resident set, over what was
resident before the run.  The bytes of the compressed weights must be the same.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

from resident import status

RESULTS = Path(__file__).parent / "results"
SHAPE = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 1024}
SAMPLES, TOKENS = 128, 1024
LIMIT = 32_000_000
STATIC = (
    "QuantizationModifier: {ignore: [lm_head], config_groups: {all: {targets: [Linear], "
    "weights: {num_bits: 8, strategy: channel}, input_activations: {num_bits: 8, strategy: tensor}}}}"
)
CASES = {
    f"{pipeline}, {place}": {"pipeline": pipeline, "offload_activations": place, "true_sequential": False}
    for pipeline in ("sequential", "layer_sequential")
    for place in ("cpu", "disk")
}


def child(case: str, samples: int) -> None:
    """Compress, and say what the peak was and what came of the weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import coldpress

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=TOKENS)
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, SHAPE["vocab_size"], (samples, 1, TOKENS), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    with torch.no_grad():
        model(**data[0])  # so that what a first forward allocates for good is not counted
    bare = status()["VmRSS"]
    start = time.perf_counter()
    coldpress.oneshot(model, STATIC, dataset=data, offload_limit=LIMIT, quiet=True, **CASES[case])
    seconds = time.perf_counter() - start
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    peak = status()["VmHWM"] - bare
    print(json.dumps({"peak": peak, "seconds": round(seconds, 1), "weights": digest.hexdigest()[:16]}))


def measure(samples: int) -> list[dict]:
    """Every case in a process of its own."""
    results = []
    for case in CASES:
        command = [sys.executable, __file__, "--child", case, "--samples", str(samples)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results.append({"case": case, **json.loads(run.stdout)})
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    return results


def table(results: list[dict], samples: int) -> str:
    """The outcome for a person."""
    waiting = samples * TOKENS * SHAPE["hidden_size"] * 4
    lines = [
        "# Memory of activations",
        "",
        "`python benchmarks/offload.py --write`",
        "",
        f"A Llama of 4 blocks, width 512, float32; {samples} sequences of {TOKENS} tokens.",
        f"In front of a block wait {waiting / 1e6:.0f} MB, besides positions.",
        f"Limit of what waits in memory with `disk`: {LIMIT / 1e6:.0f} MB.",
        "Peak: VmHWM over the resident set before the run.",
        "",
        "| case | peak, MB | seconds | weights |",
        "|---|--:|--:|---|",
    ]
    lines += [f"| {r['case']} | {r['peak'] / 1e6:.0f} | {r['seconds']} | {r['weights']} |" for r in results]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="sequences")
    parser.add_argument("--write", action="store_true", help="write results/offload.{md,json}")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.samples)
        return
    results = measure(options.samples)
    text = table(results, options.samples)
    print(text)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "offload.md").write_text(text)
        (RESULTS / "offload.json").write_text(json.dumps({"model": SHAPE, "results": results}, indent=1) + "\n")
    sys.exit(len({result["weights"] for result in results}) > 1)


if __name__ == "__main__":
    main()
