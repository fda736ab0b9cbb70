"""Whether GPTQModel's kernels in torch say of our `gptq` and `awq` files what our model in memory says.

    make .venv-gptqmodel/.stamp
    python benchmarks/gptqmodel_kernels.py --write

SmolLM2 is rounded to nearest in groups of 64 and written; transformers opens the folder in an environment of its own,
with the layers of GPTQModel.  Both sides compute in float32 on the CPU; the KL is that of 256 tokens of held-out text.
A packed file is `served` when every layer that we quantized is one of GPTQModel's.
"""

import argparse
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
PYTHON = ROOT / ".venv-gptqmodel/bin/python"
TOKENS, GROUP = 256, 64
CASES = {
    "gptq, 2 bits": ("gptq", "W2A16", {}),
    "gptq, 3 bits": ("gptq", "W3A16", {}),
    "gptq, 4 bits": ("gptq", "W4A16", {}),
    "gptq, 8 bits": ("gptq", "W8A16", {}),
    "gptq, 4 bits, asymmetric": ("gptq", "W4A16_ASYM", {}),
    "gptq, 4 bits, by GPTQ": ("gptq", "W4A16", {"modifier": "GPTQModifier"}),
    "awq, 4 bits, asymmetric": ("awq", "W4A16_ASYM", {}),
}

READER = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig
folder, answer = sys.argv[1:]
said = json.load(open(folder + "/config.json"))["quantization_config"]
how = GPTQConfig(bits=said["bits"], backend="gptq_torch") if said["quant_method"] == "gptq" else AwqConfig(
    bits=4, group_size=said["group_size"], backend="torch_awq")
model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float32, quantization_config=how)
tokens = torch.tensor([json.load(open(folder + "/../tokens.json"))])
with torch.no_grad():
    found = model.eval()(input_ids=tokens).logits[0].float().log_softmax(-1)
kinds = {}
for module in model.modules():
    if "Linear" in type(module).__name__:
        kinds[type(module).__name__] = kinds.get(type(module).__name__, 0) + 1
torch.save({"log_probabilities": found, "kinds": kinds}, answer)
"""


def measure(folder: Path, tokens: list[int], form: str, scheme: str, modifier: str = "QuantizationModifier") -> dict:
    """Write one file, have it read, and compare."""
    import torch

    from coldpress import load_model, oneshot

    recipe = f"{modifier}: {{scheme: {scheme}, group_size: {GROUP}, ignore: [lm_head]}}"
    data = (
        {"dataset": "coldpress/short", "num_calibration_samples": 8, "max_seq_length": 256}
        if modifier == "GPTQModifier"
        else {}
    )
    oneshot("smollm2", recipe, output_dir=str(folder), format=form, quiet=True, return_model=False, **data)
    model = load_model(folder, dtype=torch.float32)
    with torch.no_grad():
        ours = model(input_ids=torch.tensor([tokens])).logits[0].float().log_softmax(-1)
    answer = folder.with_suffix(".pt")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1"}  # compiling takes minutes
    run = subprocess.run(
        [str(PYTHON), "-c", READER, str(folder), str(answer)], capture_output=True, text=True, env=environment
    )
    if run.returncode:
        return {"failed": run.stderr.strip().rpartition("\n")[2][:200]}
    found = torch.load(answer)
    theirs = found["log_probabilities"]
    kl = (ours.exp() * (ours - theirs)).sum(-1)
    return {
        "kl": float(kl.mean()),
        "most": float((ours - theirs).abs().max()),
        "same_token": float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
        "kinds": found["kinds"],
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| | KL | largest difference | same likeliest token | layers |", "|---|--:|--:|--:|---|"]
    for name, one in rows.items():
        if "failed" in one:
            lines.append(f"| {name} | fails: {one['failed']} | | | |")
            continue
        kinds = ", ".join(f"{count} {kind}" for kind, count in one["kinds"].items())
        lines.append(f"| {name} | {one['kl']:.2g} | {one['most']:.2g} | {one['same_token']:.3f} | {kinds} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write results/gptqmodel.{md,json}")
    options = parser.parse_args()
    if not PYTHON.exists():
        parser.error("`make .venv-gptqmodel/.stamp` makes the environment of the reader")
    from coldpress import load_tokenizer
    from coldpress.calibration import short

    text = "\n\n".join(row["text"] for row in short.load("held_out")[:8])
    tokens = load_tokenizer("smollm2")(text)["input_ids"][:TOKENS]
    rows = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokens.json").write_text(json.dumps(tokens))
        for number, (words, (form, scheme, more)) in enumerate(CASES.items()):
            rows[words] = measure(folder / str(number), tokens, form, scheme, **more)
            print(words, rows[words], file=sys.stderr, flush=True)
    asked = "import importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in ('gptqmodel', 'transformers')))"
    versions = subprocess.run([str(PYTHON), "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    command = "python benchmarks/gptqmodel_kernels.py --write"
    text = f"# GPTQModel\n\n`{command}` on {date.today()}: {versions}.\n\n{table(rows)}\n"
    print(text)
    if options.write:
        (RESULTS / "gptqmodel.md").write_text(text)
        (RESULTS / "gptqmodel.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
