"""Which rotation applies where: R1, R2, R4 on every causal-LM type that transformers can build, and why not elsewhere.

    python benchmarks/rotation_zoo.py [TYPE ...] [--output benchmarks/results] [--seconds N] [--go-on]

For each type a tiny random model is built in float64, its experts become linear layers as in `oneshot`, and all
rotations that probing finds possible run over it at once.  What is said is how far the logits move.
"""

import argparse
import json
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "core" / "tests" / "dataflow"))
import zoo

from coldpress.bases.probing import call_of
from coldpress.dataflow.product_trace import ProductTrace
from coldpress.entrypoints.experts import open_experts
from coldpress.plugin import State, block_names, rotations_of, stream_of
from coldpress.recipe import Recipe
from coldpress.registry import find
from coldpress.run.job import Job
from coldpress.testing.trial import Parts

SECONDS = 120  # limit for one type
WIDE = 4096  # more channels get Hadamard matrices: a random one takes minutes
HOLDS = 1e-6  # the relative change of logits that still counts as none
PEER = {"Llama", "Cohere2Moe"}  # classes in llm-compressor 0.14.0.1's table; any other is taken for a Llama


def found_in(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    """Which rotations are possible, with the size of value heads, and why R1 is not."""
    state = State(model=model, batches=[batch])
    names = block_names(model) or [""]
    called = [name for name in names if not isinstance(call_of(state, name), str)]  # others are for images and sound
    blocks = [rotations_of(state, name) for name in called]
    row: dict[str, Any] = {"R1": True, "why": "", "keeps_ones": False, "ignored": len(names) - len(called)}
    row["ignore"] = [f"re:^{name}\\." for name in names if name not in called]
    try:
        row["keeps_ones"] = stream_of(state).keeps_ones
    except Exception as error:
        row |= {"R1": False, "why": str(error).splitlines()[0][:200]}
    row["R2"] = sorted({heads.head_dim for block in blocks for heads in block.heads})
    row["R4"] = sum(len(block.last) for block in blocks)
    return row


def rotate(model: nn.Module) -> dict[str, Any]:
    """Rotate by all that is possible, and say how far the logits move."""
    batch = zoo.token_batch()
    with ProductTrace(()):
        before = zoo.logits(model, batch)
        row = found_in(model, {**batch, "use_cache": False})
        names = [name for name in ("R1", "R2", "R4") if row[name]]
        if names:
            widest = max(max(p.shape) for name, p in model.named_parameters() if "embed" not in name and p.ndim == 2)
            kind = "hadamard" if widest > WIDE else "random-matrix"
            settings = {"rotations": names, "transform_type": kind, "ignore": row["ignore"]}
            modifier = find("modifiers", "SpinQuantModifier")(**settings)
            state = State(model=model, batches=[{**batch, "use_cache": False}])
            Job(recipe=Recipe([modifier]), state=state, pipeline=Parts()).run()
        after = zoo.logits(model, batch)
    return {**row, "change": ((after - before).abs().max() / before.abs().max()).item()}


def examine(model_type: str) -> dict[str, Any]:
    """What can be done to one type, as plain data; "failed" where it could not be built or run."""
    try:
        with zoo.time_limit(SECONDS):
            model = zoo.build(model_type).double()
            row = {"type": model_type, "class": type(model).__name__}
            open_experts(model, [], all_experts=False)
            return row | rotate(model)
    except Exception as e:
        return {"type": model_type, "failed": f"{type(e).__name__}: {(str(e).strip().splitlines() or [''])[0][:160]}"}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all types."""
    ran = [row for row in rows if "failed" not in row]
    return {
        "types": len(rows),
        "ran": len(ran),
        "R1": sum(row["R1"] for row in ran),
        "R1 by a rotation that keeps means": sum(row["keeps_ones"] for row in ran),
        "R2": sum(bool(row["R2"]) for row in ran),
        "R4": sum(bool(row["R4"]) for row in ran),
        "function kept": sum(row["change"] <= HOLDS for row in ran),
        "largest change": max((row["change"] for row in ran), default=0.0),
        "in the table of llm-compressor": sum(row["class"].removesuffix("ForCausalLM") in PEER for row in ran),
    }


def page(rows: list[dict[str, Any]], counts: dict[str, Any], command: str) -> str:
    """The page: counts, one line for each type, and what could not be run."""
    lines = [f"# Rotations of {len(rows)} types", "", f"`{command}`", ""]
    lines += [f"transformers {transformers.__version__}, torch {torch.__version__}, {platform.machine()}.", ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {key} | {value if isinstance(value, int) else f'{value:.1e}'} |" for key, value in counts.items()]
    lines += [
        "",
        "R1: `means` where norms subtract the mean.  R2: channels of a value head.  R4: layers rotated online.",
    ]
    lines += ["", "| type | R1 | R2 | R4 | change | why not R1 |", "|---|---|---|--:|--:|---|"]
    for row in (row for row in rows if "failed" not in row):
        one = ("means" if row["keeps_ones"] else "yes") if row["R1"] else "no"
        sizes = ", ".join(map(str, row["R2"])) or "no"
        why = row["why"].removeprefix("the residual stream ").replace("|", "/")
        lines.append(f"| {row['type']} | {one} | {sizes} | {row['R4']} | {row['change']:.1e} | {why} |")
    lines += ["", "## Not run", "", "| type | why |", "|---|---|"]
    lines += [f"| {row['type']} | {row['failed'].replace('|', '/')} |" for row in rows if "failed" in row]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the list and write the two files, after every type."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", help="model types; all when none is given")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="examine no further type after that long")
    parser.add_argument("--go-on", action="store_true", help="keep the types that the output has already")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    kept = arguments.output / "rotation_zoo.json"
    known = json.loads(kept.read_text())["types"] if arguments.go_on and kept.exists() else []
    rows, start = {row["type"]: row for row in known}, time.perf_counter()
    arguments.output.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python benchmarks/rotation_zoo.py", *arguments.types])
    for model_type in arguments.types or zoo.model_types():
        if model_type in rows or time.perf_counter() - start > arguments.seconds:
            continue
        rows[model_type] = examine(model_type)
        print(json.dumps(rows[model_type]), flush=True)
        ordered = [rows[name] for name in sorted(rows)]
        counts = summary(ordered)
        (arguments.output / "rotation_zoo.md").write_text(page(ordered, counts, command))
        kept.write_text(json.dumps({"summary": counts, "types": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    main()
