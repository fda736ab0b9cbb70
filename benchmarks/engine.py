"""What the engine costs: passes over the blocks and the Gram matrices, against one plain forward.

    python benchmarks/engine.py --write

SmolLM2 in bfloat16, 32 samples of 512 tokens.  In one process, in turns, `--repeats` times, medians:

    plain          the model's own forward over the batches, head included
    passes         a run of the pipeline sequential, blocks as a whole, whose modifier only looks: first pass and
                   propagation
    layer by layer the same with `true_sequential`, the default here: batches run through a block once
    with gram      the same, and the Gram matrix of every distinct input is collected
    GEMM rate      a bfloat16 product of 512 x 1536 by 1536 x 1536, the shape of this model's work

The arithmetic is 2 x weights x tokens, at the GEMM rate.
"""

import argparse
import json
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import torch
from attrs import frozen

from coldpress import load_model, load_tokenizer, registry
from coldpress.arguments import DatasetArguments
from coldpress.calibration.dataset import load_batches
from coldpress.plugin import Batch, Modifier, Needs, Stage, State, hookimpl
from coldpress.recipe import Recipe
from coldpress.run.job import Job

RESULTS = Path(__file__).parent / "results"
SAMPLES, TOKENS = 32, 512


@frozen(kw_only=True, eq=False)
class Looker(Modifier):
    """Looks at every batch and does nothing."""

    def needs(self) -> Needs:
        """Data."""
        return Needs(data=True)

    @hookimpl
    def calibrate_batch(self, state: State, stage: Stage, batch: Batch) -> None:
        """Nothing."""


@frozen(kw_only=True, eq=False)
class Asker(Modifier):
    """Asks for the Gram matrix of every layer and does nothing with it."""

    def needs(self) -> Needs:
        """Data."""
        return Needs(data=True)

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Ask."""
        for layer in self.layers(stage):
            state.request(layer, "gram")


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def gemm_rate() -> float:
    """FLOP per second of bfloat16 products of this model's shape."""
    x, w = torch.randn(512, 1536).bfloat16(), torch.randn(1536, 1536).bfloat16()
    times = [seconds(lambda: [x @ w.t() for _ in range(20)]) for _ in range(5)]
    return 20 * 2 * 512 * 1536 * 1536 / min(times)


def measure(repeats: int) -> dict:
    model = load_model("smollm2", dtype="bfloat16", device="cpu").eval()
    tokenizer = load_tokenizer("smollm2", model)
    arguments = DatasetArguments(dataset="coldpress/short", num_calibration_samples=SAMPLES, max_seq_length=TOKENS)
    batches = load_batches(arguments, tokenizer, 0)
    pipeline = registry.find("pipelines", "sequential")

    def plain() -> None:
        with torch.no_grad():
            for batch in batches:
                model(**batch, use_cache=False)

    def run(modifier: Modifier, **settings: bool) -> None:
        state = State(model=model, batches=batches)
        Job(recipe=Recipe(modifier), state=state, pipeline=pipeline(**settings)).run()

    jobs = {
        "plain": plain,
        "passes": lambda: run(Looker(ignore=["lm_head"]), true_sequential=False),
        "layer by layer": lambda: run(Looker(ignore=["lm_head"])),
        "with gram": lambda: run(Asker(ignore=["lm_head"])),
    }
    plain()  # warm up
    times = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            times[name].append(round(seconds(job), 2))
    weights = sum(parameter.numel() for parameter in model.parameters())
    rate = gemm_rate()
    return {
        "seconds": times,
        "tokens": sum(batch["input_ids"].numel() for batch in batches),
        "gemm_gflops": round(rate / 1e9, 1),
        "arithmetic_seconds_of_plain": round(2 * weights * SAMPLES * TOKENS / rate, 2),
    }


def table(found: dict) -> str:
    medians = {name: statistics.median(values) for name, values in found["seconds"].items()}
    plain = medians["plain"]
    gram = medians["with gram"] - medians["layer by layer"]
    rows = [
        ("plain forward", plain, "1"),
        ("first pass and propagation", medians["passes"], f"{medians['passes'] / plain:.2f} (target 2.1)"),
        ("layer by layer, once", medians["layer by layer"], f"{medians['layer by layer'] / plain:.2f}"),
        ("Gram matrices", gram, f"{gram / plain:.2f} (target 0.6)"),
        ("arithmetic of the plain forward", found["arithmetic_seconds_of_plain"], ""),
    ]
    lines = [f"| {name} | {value:.2f} | {ratio} |" for name, value, ratio in rows]
    return "\n".join(["| | seconds | in plain forwards |", "|---|--:|--:|", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="store the result under benchmarks/results")
    options = parser.parse_args()
    found = measure(options.repeats)
    found["command"] = f"python benchmarks/engine.py --repeats {options.repeats}"
    found["versions"] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    print(table(found))
    if options.write:
        facts = (
            f"`{found['command']}` on {date.today()}: torch {torch.__version__}, {torch.get_num_threads()} threads, "
        )
        facts += f"bf16 GEMM {found['gemm_gflops']} GFLOP/s, {found['tokens']} tokens, medians of {options.repeats}."
        spread = "; ".join(f"{name} {values}" for name, values in found["seconds"].items())
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "engine.md").write_text(f"# The engine\n\n{facts}\n\n{table(found)}\n\nAll seconds: {spread}.\n")
        (RESULTS / "engine.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
