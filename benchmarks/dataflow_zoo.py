"""Dataflow of every causal-LM type that transformers can build: distinct inputs, pairs, certificates, reasons.

    python benchmarks/dataflow_zoo.py [TYPE ...] [--output benchmarks/results]

For each type a tiny random model is built, one block of each kind is probed, random scales are folded into every
pair of every block, and the logits are compared in float64.  Without types the whole list is run (some minutes).
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
from attrs import asdict

sys.path.insert(0, str(Path(__file__).parent.parent / "core" / "tests" / "dataflow"))
import zoo

SECONDS = 60  # limit for one type
HOLDS = 1e-6  # the relative change of logits that still counts as none


def examine(model_type: str) -> dict[str, Any]:
    """What there is to say about one type, as plain data; says "built", "runs" and "why" where it fails."""
    try:
        with zoo.time_limit(SECONDS):
            return {"type": model_type, "built": True, "runs": True, **asdict(zoo.examine(model_type))}
    except Exception as e:
        why = f"{type(e).__name__}: {str(e).strip().splitlines()[0][:160] if str(e).strip() else ''}"
        return {"type": model_type, "built": zoo.can_be_built(model_type), "runs": False, "why": why}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all types."""
    ran = [r for r in rows if r["runs"]]
    paired = [r for r in ran if sum(r["pairs"])]
    certificates = [c for r in ran for c in r["certificates"].values()]
    return {
        "types": len(rows),
        "built": sum(r["built"] for r in rows),
        "built_and_run": len(ran),
        "fully_probed": sum(r["kinds"] == r["probed"] for r in ran),
        "with_pairs": len(paired),
        "pairs": sum(sum(r["pairs"]) for r in ran),
        "largest_certificate": max(certificates, default=0.0),
        "logits_unchanged": sum(r["logits_change"] <= HOLDS for r in ran),
        "largest_logits_change": max((r["logits_change"] for r in ran), default=0.0),
    }


def table(rows: list[dict[str, Any]], counts: dict[str, Any], command: str) -> str:
    """The page: counts, one line per type, reasons."""
    lines = ["# Dataflow of every causal-LM type", "", f"`{command}`", ""]
    lines += [f"transformers {transformers.__version__}, torch {torch.__version__}, {platform.machine()}.", ""]
    lines += ["| | |", "|---|---|", *(f"| {k.replace('_', ' ')} | {_number(v)} |" for k, v in counts.items()), ""]
    lines += [
        "Layers: linear layers of one block of each kind; they share that many distinct inputs.",
        "Change: largest relative change of the logits in float64 after folding random scales into every block;",
        "as is: the same with the float32 inside the model's own code left in place.",
        "",
        "| type | kinds (probed) | layers -> inputs | pairs | largest certificate | change | as is | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(r) for r in rows if r["runs"]]
    lines += ["", "## Not run", "", "| type | built | why |", "|---|---|---|"]
    lines += [f"| {r['type']} | {'yes' if r['built'] else 'no'} | {_cell(r['why'])} |" for r in rows if not r["runs"]]
    lines += ["", "## Layers without a pair, producers refused, kinds not probed", ""]
    for r in rows:
        reasons = sorted({(v, k) for k, v in r.get("reasons", {}).items()})
        if reasons:
            lines += [f"- **{r['type']}**", *(f"  - `{name}`: {why}" for why, name in reasons)]
    return "\n".join(lines) + "\n"


def _line(r: dict[str, Any]) -> str:
    certificate = max(r["certificates"].values(), default=float("nan"))
    layers = ", ".join(f"{a} -> {b}" for a, b in zip(r["layers"], r["inputs"], strict=True))
    pairs = ", ".join(map(str, r["pairs"]))
    numbers = " | ".join(_number(x) for x in (certificate, r["logits_change"], r["float32_change"]))
    return f"| {r['type']} | {r['kinds']} ({r['probed']}) | {layers} | {pairs} | {numbers} | {r['seconds']:.1f} |"


def _number(x: float) -> str:
    return str(x) if isinstance(x, int) else "-" if x != x else f"{x:.1e}" if x else "0"


def _cell(text: str) -> str:
    return text.replace("|", "/")


def main() -> None:
    """Run the list and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", help="model types; all when none is given")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    rows, start = [], time.perf_counter()
    for model_type in arguments.types or zoo.model_types():
        row = examine(model_type)
        rows.append(row)
        print(_line(row) if row["runs"] else f"| {model_type} | {row['why']} |", flush=True)
    counts = summary(rows) | {"seconds": round(time.perf_counter() - start)}
    command = " ".join(["python benchmarks/dataflow_zoo.py", *arguments.types])
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "dataflow_zoo.md").write_text(table(rows, counts, command))
    (arguments.output / "dataflow_zoo.json").write_text(json.dumps({"summary": counts, "types": rows}, indent=1) + "\n")
    print(json.dumps(counts, indent=1))


if __name__ == "__main__":
    main()
