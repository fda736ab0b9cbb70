"""What coldpress does on a card, measured: a child of gpu.py.

python benchmarks/card/ours.py '{"task": "gptq", "model": FOLDER, "warm": FOLDER, "samples": 128, "length": 2048, ...}'
"""

import cProfile
import pstats
import shutil
from pathlib import Path
from typing import Any

import torch

from card.gauge import answer, gauged, request, seconds, token_ids
from coldpress import load_model, oneshot
from coldpress_gptq.algorithm import solver
from coldpress_gptq.algorithm.solver import Grid, prepare, scale_rows, searched_qparams, solve

RECIPE = "GPTQModifier: {scheme: W4A16, ignore: [lm_head]}"
ROUNDED = ("W4A16", "FP8_DYNAMIC", "NVFP4A16")


def settings(vocabulary: int, samples: int, length: int) -> dict[str, Any]:
    """Of a calibration."""
    rows = [{"input_ids": ids} for ids in token_ids(vocabulary, samples, length)]
    more = {"num_calibration_samples": samples, "max_seq_length": length, "shuffle_calibration_samples": False}
    return {"dataset": rows, "quiet": True, **more}


def gptq(folder: str, samples: int, length: int, asked: dict) -> dict[str, float]:
    """A model that is on the card, in its memory."""
    model = load_model(folder, dtype=torch.bfloat16, device=asked["device"])
    data = settings(model.config.vocab_size, samples, length)
    return gauged(lambda: oneshot(model, RECIPE, **data), asked["device"])


def streamed(folder: str, samples: int, length: int, asked: dict) -> dict[str, float]:
    """A folder to a folder, a block at a time, by way of the card."""
    output = Path(asked["output"])
    data = settings(1000, samples, length)
    work = {"output_dir": str(output), "return_model": False, "device": asked["device"], **data}
    found = gauged(lambda: oneshot(folder, RECIPE, **work), asked["device"])
    shutil.rmtree(output)
    return found


def rounding(folder: str, asked: dict) -> dict[str, dict[str, float]]:
    """Schemes that are rounded to nearest without data."""
    found = {}
    for scheme in ROUNDED:
        model = load_model(folder, dtype=torch.bfloat16, device=asked["device"])
        recipe = f"QuantizationModifier: {{scheme: {scheme}, ignore: [lm_head]}}"
        weights = sum(layer.weight.nbytes for layer in model.model.modules() if isinstance(layer, torch.nn.Linear))
        found[scheme] = gauged(lambda: oneshot(model, recipe, quiet=True), asked["device"])  # noqa: B023
        found[scheme]["bytes"] = weights
    return found


def kernel(rows: int, width: int, asked: dict) -> dict[str, float]:
    """The loop of GPTQ in Triton beside the one in torch, for a layer, without the search for scales."""
    from coldpress import QuantizationArgs
    from coldpress_gptq.algorithm.kernel import FusedSteps

    generator = torch.Generator(asked["device"]).manual_seed(0)
    draw = {"generator": generator, "device": asked["device"]}
    x = torch.randn(2 * width, width, **draw) * torch.rand(width, **draw).add_(0.1)
    weight, args = torch.randn(rows, width, **draw), QuantizationArgs(num_bits=4, group_size=min(128, width))
    ready = prepare(x.t() @ x, dampening_frac=0.01, by_activity=True)
    parts = [scale_rows(part, args, (rows, width)) for part in searched_qparams(weight, args, ready.importance)]
    found, solutions = {"rows": rows, "width": width}, []
    for name, loop in {"triton": FusedSteps, "torch": solver.Steps}.items():
        solver.inner_loop = loop

        def work() -> None:
            solutions.append(solve([[weight]], [ready], Grid(args, *parts), block_size=128, keep_zeros=False))

        work()
        found[name] = min(seconds(work, asked["device"]) for _ in range(2))
    ours, oracle = solutions[0], solutions[-1]
    found["other codes"] = float((ours.codes != oracle.codes).float().mean())
    found["loss"] = float(ours.loss.sum() / oracle.loss.sum())
    return found


def main() -> None:
    asked = request()
    sizes = asked["samples"], asked["length"]
    if asked["task"] == "kernel":
        answer({"layers": [kernel(*shape, asked) for shape in asked["shapes"]]})
        return
    if asked["task"] == "rounding":
        rounding(asked["warm"], asked)
        answer({"schemes": rounding(asked["model"], asked)})
        return
    task = {"gptq": gptq, "streamed": streamed}[asked["task"]]
    task(asked["warm"], 4, 64, asked)
    if asked.get("profile"):
        with cProfile.Profile() as profile:
            found = task(asked["model"], *sizes, asked)
        pstats.Stats(profile).sort_stats("cumtime").print_stats(75)
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
    else:
        found = task(asked["model"], *sizes, asked)
    answer(found)


if __name__ == "__main__":
    main()
