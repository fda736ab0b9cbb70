"""What `coldpress plan` says beside what happens: sizes to the byte, peak memory and time.

    python benchmarks/plan.py sizes --write
    python benchmarks/plan.py runs --write

`sizes`: every preset in both formats on tiny models of twelve families, and on SmolLM2, planned and run; where a preset
has groups of 128 columns, which fit none of these models, with groups of 32.
`runs`: five recipes on SmolLM2, each in a fresh process by the command line; the report of a run holds both sides.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from attrs import evolve

import coldpress
from coldpress import Scheme, load_model, load_tokenizer, oneshot, preset_names
from coldpress.modifiers import QuantizationModifier
from coldpress.report.contents import contents_of
from coldpress.schemes.presets import preset
from coldpress.testing.families import FAMILIES, tiny_family
from coldpress.testing.mixtures import MIXTURES, tiny_mixture
from coldpress.testing.models import batches, tiny_conv1d, tiny_llama, tiny_tokenizer

RESULTS = Path(__file__).parent / "results"
IGNORE = ["lm_head", r"re:.*(gate|router)(\.\w+)?$"]
RECIPES = {
    "w4a16": ["--recipe", "w4a16", "--recipe-arg", "group_size=64"],
    "w8a8": ["--recipe", "w8a8"],
    "gptq-w4a16": ["--recipe", "gptq-w4a16", "--recipe-arg", "group_size=64"],
    "smoothquant-w8a8": ["--recipe", "smoothquant-w8a8"],
    "sparsegpt-2of4": ["--recipe", "sparsegpt-2of4"],
}
GROUP = 32  # columns that share a scale: 128 fit no layer of 64 or 576
DATA = ["--num-calibration-samples", "32", "--max-seq-length", "512"]


def models(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and folder of the tiny models."""
    built = {"llama": lambda: tiny_llama(dtype=torch.bfloat16, tied=True), "gpt2": lambda: tiny_conv1d(hidden=128)}
    built |= {name: (lambda name=name: tiny_family(name, dtype=torch.bfloat16)) for name in sorted(FAMILIES)[:6]}
    built |= {name: (lambda name=name: tiny_mixture(name)) for name in sorted(MIXTURES)[:4]}
    for name, build in built.items():
        build().save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
        yield name, folder / name


def compare(name: str, model: str, preset_name: str, form: str, out: Path) -> dict[str, Any]:
    """Bytes that were planned and written; the reason where the scheme is refused for the model."""
    scheme, group = smaller_groups(preset(preset_name))
    modifier = QuantizationModifier(config_groups={"group_0": scheme}, ignore=IGNORE)
    data = {"dataset": batches(rows=2)} if any(step.needs().data for step in modifier.expand()) else {}
    settings = {"format": form, "quiet": True, **data}
    line = {"model": name, "scheme": preset_name, "group": group, "format": form}
    planned, refused = attempt(lambda: coldpress.plan(model, modifier, **settings))
    _, failed = attempt(lambda: oneshot(model, modifier, output_dir=str(out), return_model=False, **settings))
    if refused or failed:
        alike = bool(refused) and bool(failed)
        return {**line, "planned": "", "is": "", "exact": "" if alike else False, "refused": refused or failed}
    tensors, files = contents_of(out).nbytes(), sum(path.stat().st_size for path in out.glob("*.safetensors"))
    exact = (planned.after, planned.files) == (tensors, files)
    return {**line, "planned": planned.after, "is": tensors, "exact": exact, "refused": ""}


def attempt(run: Callable[[], Any]) -> tuple[Any, str]:
    """What a function returns, and the first line of what it refuses with."""
    try:
        return run(), ""
    except coldpress.ColdpressError as error:
        return None, str(error).splitlines()[0]


def smaller_groups(scheme: Scheme) -> tuple[Scheme, int | str]:
    """A scheme with groups of weights that fit small models, and how many columns share a scale."""
    weights = scheme.weights
    if weights is None or not weights.group_size:
        return scheme, ""
    if weights.group_size == 128:
        return evolve(scheme, weights=evolve(weights, group_size=GROUP)), GROUP
    return scheme, weights.group_size


def sizes(only: list[str]) -> list[dict[str, Any]]:
    """Every model, preset and format."""
    logging.disable(logging.WARNING)
    found = []
    with TemporaryDirectory() as folder:
        places = [*models(Path(folder)), ("smollm2", "smollm2")]
        for name, model in places:
            for scheme in preset_names() if name not in only else ():
                for form in ("compressed-tensors", "dense"):
                    with TemporaryDirectory() as out:
                        line = compare(name, str(model), scheme, form, Path(out) / "out")
                    found.append(line)
                    sys.stderr.write(f"{line}\n")
    return found


def runs() -> list[dict[str, Any]]:
    """Predicted and measured, of each recipe."""
    found = []
    with TemporaryDirectory() as folder:
        model = load_model("smollm2", dtype="bfloat16")
        model.save_pretrained(f"{folder}/model")
        load_tokenizer("smollm2", model).save_pretrained(f"{folder}/model")
        for name, words in RECIPES.items():
            data = DATA if "q" in name or "gpt" in name else []
            command = ["compress", f"{folder}/model", *words, *data, "--quiet", "-o", f"{folder}/{name}"]
            before = os.times()
            subprocess.run([sys.executable, "-m", "coldpress", *command], check=True)
            after = os.times()
            report = json.loads(Path(f"{folder}/{name}/report.json").read_text())
            predicted, measured = report["predicted"], report["measured"]
            low, high = predicted["seconds"]["low"], predicted["seconds"]["high"]
            host = predicted["memory"]["host_bytes"]
            found.append(
                {
                    "recipe": name,
                    "seconds_low": low,
                    "seconds_high": high,
                    "seconds": measured["seconds"],
                    "times_the_middle": round(measured["seconds"] / (low * high) ** 0.5, 2),
                    "cpu_seconds": round(after.children_user - before.children_user, 1),
                    "host_predicted": host,
                    "host_measured": measured["host_bytes"],
                    "host_off": f"{host / measured['host_bytes'] - 1:+.1%}",
                    "bytes_predicted": predicted["size"]["bytes_after"],
                    "bytes_measured": measured["bytes_after"],
                }
            )
            sys.stderr.write(f"{found[-1]}\n")
    return found


def page(kind: str, lines: list[dict[str, Any]], command: str) -> str:
    """The results as a table."""
    columns = list(dict.fromkeys(key for line in lines for key in line))
    rows = [" | ".join(str(line.get(key, "")) for key in columns) for line in lines]
    head = f"# Plan: {kind}\n\n`{command}`\n\n"
    if kind == "sizes":
        judged = [line["exact"] for line in lines if line["exact"] != ""]
        head += f"{sum(judged)} of {len(judged)} checkpoints have the planned size, of tensors and of files. "
        head += f"{len(lines) - len(judged)} are refused, by the plan as by the run.\n\n"
    table = [" | ".join(columns), "|".join("---" for _ in columns), *rows]
    return head + "\n".join(f"| {row} |" for row in table) + "\n"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("sizes", "runs"))
    parser.add_argument("--without", nargs="*", default=[], help="models of `sizes` to leave out")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    lines = sizes(arguments.without) if arguments.kind == "sizes" else runs()
    text = page(arguments.kind, lines, f"python benchmarks/plan.py {' '.join(sys.argv[1:])}")
    sys.stdout.write(text)
    if arguments.write:
        (RESULTS / f"plan-{arguments.kind}.md").write_text(text)
        (RESULTS / f"plan-{arguments.kind}.json").write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
