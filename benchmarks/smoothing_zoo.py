"""SmoothQuant and AWQ without mappings on every causal-LM type that transformers can build.

    python benchmarks/smoothing_zoo.py [TYPE ...] [--output benchmarks/results]

For each type a tiny random model is built, its experts become linear layers as in `oneshot`, and both modifiers run
over it in float64, AWQ with a scheme that nothing rounds to, so that only its scales are seen.
What is counted: linear layers inside blocks whose inputs are smoothed, and how far the logits move.
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
from attrs import frozen
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "core" / "tests" / "dataflow"))
import zoo

from coldpress import Scheme, preset
from coldpress.dataflow.product_trace import ProductTrace
from coldpress.entrypoints.experts import open_experts
from coldpress.plugin import Layer, Modifier, Stage, State, hookimpl
from coldpress.recipe import Recipe
from coldpress.registry import find
from coldpress.run.job import Job
from coldpress.testing.trial import Parts

SECONDS = 120  # limit for one type
HOLDS = 1e-6  # the relative change of logits that still counts as none

# Classes in the tables of llm-compressor 0.14.0.1, of those that transformers registers as causal language models;
# any other class is taken for a Llama.
AWQ_TABLE = {
    *("Afmoe", "Bloom", "Cohere", "Cohere2", "Cohere2Moe", "DeepseekV2", "DeepseekV3", "Ernie4_5_Moe", "Exaone4"),
    *("Gemma2", "Gemma3", "Glm4Moe", "Glm4MoeLite", "GlmMoeDsa", "Granite", "Llama", "Mistral", "Nanbeige", "Olmo"),
    *("Olmo3", "Phi3", "Phi3V", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe", "SeedOss"),
}
SMOOTHQUANT_TABLE = AWQ_TABLE - {"Exaone4", "Olmo3", "Olmo"} | {"Mixtral"}


@frozen(kw_only=True, eq=False)
class Planned(Modifier):
    """Says how layers would be rounded, and rounds nothing."""

    def scheme_for(self, layer: Layer) -> Scheme | None:
        """Four bits, one scale a row, which fits every width."""
        return preset("W4A16", group_size=-1)

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Nothing."""


def smooth(name: str, model: nn.Module) -> dict[str, Any]:
    """Run one modifier over a model, in float64, and say what came of it."""
    batch = zoo.token_batch()
    modifiers = [find("modifiers", name)(), Planned()]
    with ProductTrace(()):
        before = zoo.logits(model, batch)
        state = State(model=model, batches=[{**batch, "use_cache": False}])
        Job(recipe=Recipe(modifiers), state=state, pipeline=Parts()).run()
        after = zoo.logits(model, batch)
    notes = {layer: line.notes for layer, line in state.report.items()}
    return {
        "smoothed": sum("smoothed_in" in note for note in notes.values()),
        "left": sum("not_smoothed" in note for note in notes.values()),
        "reasons": sorted({note["not_smoothed"] for note in notes.values() if "not_smoothed" in note}),
        "change": ((after - before).abs().max() / before.abs().max()).item(),
    }


def examine(model_type: str) -> dict[str, Any]:
    """What both modifiers do to one type, as plain data; "why" where it could not be built or run."""
    try:
        with zoo.time_limit(SECONDS):
            model = zoo.build(model_type).double()
            row = {"type": model_type, "class": type(model).__name__}
            open_experts(model, [], all_experts=False)
            return row | {name: smooth(name, model) for name in ("SmoothQuantModifier", "AWQModifier")}
    except Exception as e:
        return {"type": model_type, "why": f"{type(e).__name__}: {(str(e).strip().splitlines() or [''])[0][:160]}"}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all types."""
    ran = [row for row in rows if "why" not in row]
    counts: dict[str, Any] = {"types": len(rows), "ran": len(ran)}
    for name, table in (("SmoothQuantModifier", SMOOTHQUANT_TABLE), ("AWQModifier", AWQ_TABLE)):
        done = [row for row in ran if row[name]["smoothed"]]
        counts[name] = {
            "types": len(done),
            "function_kept": sum(row[name]["change"] <= HOLDS for row in done),
            "largest_change": max((row[name]["change"] for row in done), default=0.0),
            "in_the_table_of_llm_compressor": sum(_listed(row, table) for row in ran),
            "layers_smoothed": sum(row[name]["smoothed"] for row in done),
            "layers_left": sum(row[name]["left"] for row in ran),
        }
    return counts


def page(rows: list[dict[str, Any]], counts: dict[str, Any], command: str) -> str:
    """The page: counts, one line for each type, and what could not be run."""
    names = ("SmoothQuantModifier", "AWQModifier")
    lines = ["# SmoothQuant and AWQ without mappings", "", f"`{command}`", ""]
    lines += [f"transformers {transformers.__version__}, torch {torch.__version__}, {platform.machine()}.", ""]
    lines += [f"{counts['ran']} of {counts['types']} types could be built and run.", ""]
    lines += ["| | SmoothQuant | AWQ |", "|---|---|---|"]
    lines += [f"| {key.replace('_', ' ')} | {_shown(counts[names[0]][key])} | {_shown(counts[names[1]][key])} |"
              for key in counts[names[0]]]  # fmt: skip
    lines += [
        "",
        "Layers: smoothed, and in brackets left alone; change: of the logits; theirs: in which table of llm-compressor "
        "the class is, of SmoothQuant (S) and of AWQ (A).",
        "",
        "| type | theirs | SmoothQuant: layers | change | AWQ: layers | change |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "why" not in row:
            parts = [
                f"{one['smoothed']} ({one['left']}) | {one['change']:.1e}" for one in (row[name] for name in names)
            ]
            theirs = "S" * _listed(row, SMOOTHQUANT_TABLE) + "A" * _listed(row, AWQ_TABLE)
            lines.append(f"| {row['type']} | {theirs} | {' | '.join(parts)} |")
    lines += ["", "## Not run", "", "| type | why |", "|---|---|"]
    lines += [f"| {row['type']} | {row['why'].replace('|', '/')} |" for row in rows if "why" in row]
    return "\n".join(lines) + "\n"


def _listed(row: dict[str, Any], table: set[str]) -> bool:
    return row["class"].removesuffix("ForCausalLM") in table


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.1e}"


def main() -> None:
    """Run the list and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", help="model types; all when none is given")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="examine no further type after that long")
    parser.add_argument("--go-on", action="store_true", help="keep the types that the output has already")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    kept = arguments.output / "smoothing_zoo.json"
    known = json.loads(kept.read_text())["types"] if arguments.go_on and kept.exists() else []
    rows, start = {row["type"]: row for row in known}, time.perf_counter()
    for model_type in arguments.types or zoo.model_types():
        if model_type not in rows and time.perf_counter() - start < arguments.seconds:
            rows[model_type] = examine(model_type)
            print(json.dumps(rows[model_type]), flush=True)
    rows = [rows[name] for name in sorted(rows)]
    counts = summary(rows)
    command = " ".join(["python benchmarks/smoothing_zoo.py", *arguments.types])
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "smoothing_zoo.md").write_text(page(rows, counts, command))
    found = json.dumps({"summary": counts, "types": rows}, indent=1)
    (arguments.output / "smoothing_zoo.json").write_text(found + "\n")
    print(json.dumps(counts, indent=1))


if __name__ == "__main__":
    main()
