"""Round to nearest, ours against llm-compressor's: every tensor of both checkpoints, name by name and bit for bit.

    make rtn-oracle

Both read the same model folder and the same recipe file, in llm-compressor's grammar, and each writes a checkpoint.
llm-compressor runs in a virtual environment of its own, because it pins other versions than ours.
The result goes to benchmarks/results/rtn_oracle.json and .md; the exit status is 1 when a tensor differs.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch
from attrs import asdict, frozen
from safetensors import safe_open
from torch import Tensor

import coldpress

HERE = Path(__file__).parent
INT_TOKEN = "{num_bits: 8, type: int, symmetric: true, strategy: token, dynamic: true}"
FLOAT_TOKEN = "{num_bits: 8, type: float, symmetric: true, strategy: token, dynamic: true}"
FLOAT_GROUP = "{num_bits: 8, type: float, symmetric: true, strategy: group, group_size: 64, dynamic: true}"

# What is compared: name -> (weights, input activations).  The width of SmolLM2, 576, is no multiple of 128.
CASES = {
    "W4A16, group 64": ("{num_bits: 4, type: int, symmetric: true, strategy: group, group_size: 64}", "null"),
    "W4A16_ASYM, group 64": ("{num_bits: 4, type: int, symmetric: false, strategy: group, group_size: 64}", "null"),
    "W4A16_ASYM, channel": ("{num_bits: 4, type: int, symmetric: false, strategy: channel}", "null"),
    "W3A16, group 32": ("{num_bits: 3, type: int, symmetric: true, strategy: group, group_size: 32}", "null"),
    "W8A16, group 64": ("{num_bits: 8, type: int, symmetric: true, strategy: group, group_size: 64}", "null"),
    "W8A8": ("{num_bits: 8, type: int, symmetric: true, strategy: channel}", INT_TOKEN),
    "FP8_DYNAMIC": ("{num_bits: 8, type: float, symmetric: true, strategy: channel}", FLOAT_TOKEN),
    "FP8_BLOCK, 64 x 64": (
        "{num_bits: 8, type: float, symmetric: true, strategy: block, block_structure: [64, 64]}",
        FLOAT_GROUP,
    ),
    "FP8_BLOCK, 128 x 128": (
        "{num_bits: 8, type: float, symmetric: true, strategy: block, block_structure: [128, 128]}",
        FLOAT_GROUP,
    ),
}
RECIPE = """\
quant_stage:
  quant_modifiers:
    QuantizationModifier:
      ignore: [lm_head]
      config_groups:
        group_0:
          targets: [Linear]
          weights: {weights}
          input_activations: {inputs}
"""


@frozen
class Comparison:
    """What became of the tensors of one kind, over the whole model.

    Attributes:
        kind: last part of the tensor's name.
        tensors: how many tensors either checkpoint has of it.
        identical: how many are the same in shape, dtype and every bit.
        elements: in all tensors that could be compared.
        different: elements whose bits differ.
        unmatched: names that one checkpoint has and the other has not, or with another shape or dtype.
    """

    kind: str
    tensors: int
    identical: int
    elements: int
    different: int
    unmatched: list[str]


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a checkpoint, in whatever number of files."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - an opened file is no mapping
                yield name, opened.get_tensor(name)


def different_bits(ours: Tensor, theirs: Tensor) -> int:
    """Elements whose bits differ; both have the same shape and dtype."""
    size = ours.element_size()
    same = ours.contiguous().view(-1).view(torch.uint8) == theirs.contiguous().view(-1).view(torch.uint8)
    return int((~same.view(-1, size).all(dim=1)).sum())


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[Comparison]:
    """One comparison for each kind of tensor, the kinds in alphabetical order."""
    names: dict[str, list[str]] = {}
    for name in sorted(ours.keys() | theirs.keys()):
        names.setdefault(name.rpartition(".")[2], []).append(name)
    return [_compare_kind(kind, names[kind], ours, theirs) for kind in sorted(names)]


def _compare_kind(kind: str, names: list[str], ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Comparison:
    unmatched, counts, elements = [], [], 0
    for name in names:
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            unmatched.append(f"{name}: ours {_form(a)}, theirs {_form(b)}")
        else:
            counts.append(different_bits(a, b))
            elements += a.numel()
    return Comparison(kind, len(names), counts.count(0), elements, sum(counts), unmatched)


def _form(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"


def dense_source(cache: Path, model: str) -> Path:
    """A folder with the model in bfloat16, made once."""
    folder = cache / "source"
    if not (folder / "config.json").exists():
        loaded = coldpress.load_model(model, dtype=torch.bfloat16, device="cpu")
        coldpress.load_tokenizer(model, loaded).save_pretrained(folder)
        loaded.save_pretrained(folder)
    return folder


def run_case(case: str, *, source: Path, cache: Path, peer: Path) -> list[Comparison]:
    """Compress with both and compare; the peer's checkpoint is kept for as long as the recipe is the same."""
    weights, inputs = CASES[case]
    recipe = RECIPE.replace("{weights}", weights).replace("{inputs}", inputs)
    folder = cache / case.replace(", ", "-").replace(" ", "")
    recipe_file, theirs, ours = folder / "recipe.yaml", folder / "theirs", folder / "ours"
    if not (theirs / "config.json").exists() or recipe_file.read_text(encoding="utf-8") != recipe:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        recipe_file.write_text(recipe, encoding="utf-8")
        command = [str(peer), str(HERE / "rtn_peer.py"), str(source), str(recipe_file), str(theirs)]
        with (folder / "peer.log").open("w", encoding="utf-8") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)
    coldpress.oneshot(str(source), str(recipe_file), output_dir=str(ours), overwrite=True, pipeline="data_free")
    return compare(dict(tensors(ours)), dict(tensors(theirs)))


def peer_versions(peer: Path) -> dict[str, str]:
    """Versions of what matters in the peer's environment."""
    names = ["llmcompressor", "compressed-tensors", "torch", "transformers"]
    program = (
        f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {names}}}))"
    )
    answer: dict[str, str] = json.loads(
        subprocess.run([str(peer), "-c", program], check=True, stdout=subprocess.PIPE).stdout
    )
    return answer


def table(result: dict[str, list[Comparison]]) -> str:
    """The result as a Markdown table, one row for each case and kind of tensor."""
    rows = ["| scheme | tensor | tensors | identical | elements | differing elements |", "|---|---|--:|--:|--:|--:|"]
    for case, comparisons in result.items():
        for one in comparisons:
            cells = [f"`{one.kind}`", one.tensors, one.identical, f"{one.elements:,}", f"{one.different:,}"]
            rows.append(f"| {case} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def write(folder: Path, *, model: str, peer: Path, result: dict[str, list[Comparison]]) -> None:
    """Store the result beside the command, the versions and the date."""
    record = {
        "command": "make rtn-oracle",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "model": model,
        "python": platform.python_version(),
        "ours": {name: version(name) for name in ("coldpress", "torch", "transformers")},
        "theirs": peer_versions(peer),
        "recipes": {case: dict(zip(("weights", "input_activations"), CASES[case], strict=True)) for case in result},
        "result": {case: [asdict(one) for one in comparisons] for case, comparisons in result.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rtn_oracle.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    versions = [", ".join(f"{name} {number}" for name, number in record[side].items()) for side in ("ours", "theirs")]
    page = (
        "# Round to nearest: coldpress against llm-compressor, bit for bit\n\n"
        f"`{record['command']}` on {record['date']}, model `{model}`, Python {record['python']}.\n\n"
        f"Ours: {versions[0]}.\n\nTheirs: {versions[1]}.\n\n{table(result)}\n"
    )
    (folder / "rtn_oracle.md").write_text(page, encoding="utf-8")


def main() -> int:
    """Run the cases; 0 when every tensor is the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="what `coldpress.load_model` reads")
    parser.add_argument("--cache", type=Path, default=Path("out/rtn-oracle"), help="where the checkpoints are kept")
    parser.add_argument("--peer", type=Path, default=Path(".venv-peer/bin/python"), help="llm-compressor's Python")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this one; may be repeated")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the result is stored")
    options = parser.parse_args()
    if not options.peer.exists():
        parser.error(f"{options.peer} does not exist: `make rtn-oracle` creates it")
    source = dense_source(options.cache, options.model)
    result = {
        case: run_case(case, source=source, cache=options.cache, peer=options.peer) for case in options.case or CASES
    }
    write(options.results, model=options.model, peer=options.peer, result=result)
    print(table(result))
    unmatched = [line for comparisons in result.values() for one in comparisons for line in one.unmatched]
    print("\n".join(unmatched[:20]))
    return int(bool(unmatched) or any(one.different for comparisons in result.values() for one in comparisons))


if __name__ == "__main__":
    sys.exit(main())
