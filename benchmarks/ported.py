"""llm-compressor's example scripts after `coldpress port`: how many run, and why the others do not.

    pip download --no-deps --no-binary llmcompressor llmcompressor==0.14.0.1 && tar xf llmcompressor-*.tar.gz
    python benchmarks/ported.py llmcompressor-0.14.0.1 [WORD ...] [--write]

Every script below `examples` is ported, and what came of it is run as it is, in a process of its own, in an empty
folder; models, data sets and the libraries of others are those of `ported_stand_ins.py`.  A script has run when it
came to its end; what it saved is loaded by transformers, and its logits are compared with those in memory.
Needs pillow.  Words are parts of the names of scripts; with some, --write changes their rows only.
"""

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import compressed_tensors  # noqa: F401  (imported once, before the forks)
import datasets
import ported_stand_ins
import torch
import transformers
import transformers.models.auto.modeling_auto

import coldpress
from coldpress import load_tokenizer, modifiers, oneshot  # noqa: F401
from coldpress.errors import ColdpressError
from coldpress.porting import port

RESULTS = Path(__file__).parent / "results"
SECONDS = 1200  # limit for one script
BYTES = 16 << 30  # of its address space
ONE_PROCESS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
CLOSE = 0.05  # of the largest logit: what loads again may differ in the last bits of bfloat16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sdist", type=Path, help="the unpacked source distribution")
    parser.add_argument("words", nargs="*", help="parts of names of scripts; all of them by default")
    parser.add_argument("--write", action="store_true", help="write results/ported.json and .md")
    parser.add_argument("--into", type=Path, help="a file of rows that is read, and written after every script")
    options = parser.parse_args()
    root = options.sdist.resolve()
    scripts = sorted(path for path in (root / "examples").rglob("*.py") if ".agents" not in path.parts)
    into = options.into or RESULTS / "ported.json"
    rows = {row["script"]: row for row in json.loads(into.read_text())["rows"]} if into.exists() else {}
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _tokenizer(Path(folder))
        for path in scripts:
            name = path.relative_to(root / "examples").as_posix()
            chosen = not options.words or any(word in name for word in options.words)
            if chosen and not (options.into and name in rows):
                rows[name] = {"script": name, **_run(path, Path(folder))}
                print(name, rows[name]["outcome"], rows[name]["why"][:150], flush=True)
                if options.into:
                    options.into.write_text(json.dumps({"rows": list(rows.values())}))
    known = [rows[name] for name in (p.relative_to(root / "examples").as_posix() for p in scripts) if name in rows]
    print(dict(Counter(row["outcome"] for row in known)))
    if options.write:
        _write(known, version_of(root))


def version_of(root: Path) -> str:
    """The release that a source distribution is of."""
    return root.name.rpartition("-")[2]


def _tokenizer(folder: Path) -> None:
    """Write SmolLM2's, which is embedded, into a folder."""
    load_tokenizer("smollm2").save_pretrained(folder)


def _run(path: Path, tokenizer: Path) -> dict[str, Any]:
    """What came of one script, in a process of its own."""
    reader, writer = os.pipe()
    begun = time.time()
    child = os.fork()
    if child == 0:
        os.close(reader)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):
            os.dup2(null, stream)
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        try:
            row = _child(path, tokenizer)
        except BaseException as error:
            row = {"outcome": "harness", "why": f"{type(error).__name__}: {error}"}
        os.write(writer, json.dumps(row).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    row = json.loads(text) if text else {"outcome": "killed", "why": f"status {status}"}
    return row | {"seconds": round(time.time() - begun, 1)}


def _child(path: Path, tokenizer: Path) -> dict[str, Any]:
    try:
        ported = port(path.read_text(), path.name)
    except ColdpressError as error:
        if "nothing to port" not in str(error):
            return {"outcome": "not ported", "why": str(error)}
        text, missing = path.read_text(), []
    else:
        text, missing = ported.text, [one.name for one in ported.remarks if one.kind == "missing"]
    stand_ins = ported_stand_ins.StandIns(tokenizer)
    stand_ins.install(text)
    sys.modules["llmcompressor"] = None  # type: ignore[assignment]
    os.chdir(tempfile.mkdtemp())
    os.environ |= ONE_PROCESS | {"MASTER_PORT": str(20_000 + os.getpid() % 20_000)}
    sys.argv = [path.name]
    names = {"__name__": "__main__", "__file__": str(path)}
    try:
        exec(compile(text, str(path), "exec"), names)
    except BaseException as error:
        why = " ".join(str(error).split())[:400]
        return {"outcome": "failed", "why": f"{type(error).__name__}: {why}", "missing": missing}
    return {"outcome": "ran", "why": "", "missing": missing, **_loaded(stand_ins)}


def _loaded(stand_ins: ported_stand_ins.StandIns) -> dict[str, Any]:
    """Whether transformers loads what the script saved, and how far its logits are."""
    saved = [path.parent for path in Path.cwd().glob("*/config.json")]
    model = stand_ins.model
    if not saved or model is None:
        return {"loads": "nothing was saved" if model is not None else "no model was built"}
    try:
        again = transformers.PreTrainedModel.from_pretrained.__func__(type(model), saved[-1])
        with torch.no_grad():
            there, here = (one.eval()(**_inputs(model)).logits.float() for one in (again, model))
    except Exception as error:
        return {"loads": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    return {"loads": "yes", "change": float((there - here).abs().max() / here.abs().max())}


def _inputs(model: Any) -> dict[str, torch.Tensor]:
    if "Whisper" in type(model).__name__:
        sound = torch.randn(1, 16, 100, dtype=model.dtype, generator=torch.Generator().manual_seed(0))
        return {"input_features": sound, "decoder_input_ids": torch.arange(3, 11)[None]}
    return {"input_ids": torch.arange(14, 30)[None]}


def _write(rows: list[dict[str, Any]], release: str) -> None:
    ran = [row for row in rows if row["outcome"] == "ran"]
    close = [row for row in ran if row.get("change") is not None and row["change"] <= CLOSE]
    lines = [
        "# llm-compressor's example scripts after `coldpress port`",
        "",
        f"Made by `python benchmarks/ported.py llmcompressor-{release} --write`, {date.today()}, with coldpress "
        f"{coldpress.__version__}, torch {torch.__version__}, transformers {version('transformers')}, datasets "
        f"{datasets.__version__}, compressed-tensors {version('compressed-tensors')}.",
        "",
        f"{len(ran)} of {len(rows)} scripts of llm-compressor {release} run to their end.",
        f"Models are tiny and random, of the class and the kinds of layers that a script loads; data sets are "
        f"{ported_stand_ins.SAMPLES} short samples with the columns that it reads; what is learned has "
        f"{ported_stand_ins.STEPS} steps, GPUs are this CPU, and what only fetches images and sound does nothing.",
        f"transformers loads what {sum(row.get('loads') == 'yes' for row in ran)} of them saved; the logits of "
        f"{len(close)} are within {CLOSE} of the largest of those in memory.",
        "Most of the others are mixtures whose experts are quantized one by one where its class has them in one "
        "parameter, or have online rotations, which it does not run; vLLM does, [where it serves](served.md).",
        "",
        "## What does not run",
        "",
        "| script | why |",
        "|---|---|",
        *(f"| {row['script']} | {_cell(row['why'])} |" for row in rows if row["outcome"] != "ran"),
        "",
        "## What runs",
        "",
        "| script | loads again | change of logits |",
        "|---|---|--:|",
        *(f"| {row['script']} | {_cell(row['loads'])} | {_number(row.get('change'))} |" for row in ran),
        "",
    ]
    (RESULTS / "ported.md").write_text("\n".join(lines))
    (RESULTS / "ported.json").write_text(json.dumps({"release": release, "rows": rows}, indent=1) + "\n")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")[:300]


def _number(change: float | None) -> str:
    return "" if change is None else f"{change:.4f}"


if __name__ == "__main__":
    main()
