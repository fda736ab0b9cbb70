"""coldpress and llm-compressor side by side on a real model: seconds, memory, and what the compression cost.

    python benchmarks/compare.py gptq-w4a16 --repeats 3 --write

A job of compare/jobs.py runs in turns, theirs, ours, theirs, ours: each run in a fresh process, both from the same
bfloat16 folder, with the same token ids, seed and number of threads, on the CPU.
The seconds are those of `oneshot` alone, from its call with a loaded model to its return; nothing is written by then.
Memory is the largest resident set of the process until then, imports and the model included.
Afterwards one evaluator, coldpress's, reads the weights that either side left in memory, puts them into the same
model, and takes perplexity, mean KL to the original and agreement on the held-out text of coldpress/short, or of the
file that `--text` names.
Where inputs are quantized, it simulates that for both in the same way.
llm-compressor's QuantizationModifier only finds scales in `oneshot`, and rounds when the weights are read: that time
is a row of its own.
llm-compressor runs in `.venv-peer`, which the first run makes.  This process holds next to nothing in memory.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from statistics import median
from typing import Any

from compare.jobs import JOBS, Job

HERE = Path(__file__).parent
ROOT = HERE.parent
PEER = ROOT / ".venv-peer" / "bin" / "python"
SIDES = ("peer", "ours")
NAMES = {"peer": "llm-compressor", "ours": "coldpress"}
PACKAGES = {
    "peer": ["llmcompressor", "compressed-tensors", "torch", "transformers"],
    "ours": ["coldpress", "torch", "transformers"],
}


def run_job(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All runs of a job, and what its weights are worth."""
    job, folder = JOBS[name], options.cache / called(name, options)
    folder.mkdir(parents=True, exist_ok=True)
    prepared = prepare(folder, options)
    sides = job.sides()
    chosen = [side for side in SIDES if options.only in (None, side)]
    runs: list[dict[str, Any]] = []
    for number in range(options.repeats):
        for side in chosen:
            request = {
                "model": prepared["folder"],
                "samples": str(folder / "rows.json"),
                "modifiers": sides[side],
                "seed": options.seed,
                "threads": options.threads,
                "peer_pipeline": options.peer_pipeline,
                "weights": str(folder / f"{side}-{number}.safetensors"),
            }
            found = ask(f"compare/{side}.py", request, folder / f"{side}-{number}", python_of(side), options.threads)
            digest = keep_distinct(Path(request["weights"]), runs)
            runs.append({"side": side, "number": number, **found, "sha256": digest, "weights": request["weights"]})
            shown = ("compress_seconds", "compress_cpu_seconds", "others_cpu_seconds", "peak_megabytes")
            print(name, NAMES[side], {key: found[key] for key in shown}, file=sys.stderr, flush=True)
    costs = evaluate(job, runs, folder, prepared, options)
    return {
        "job": name,
        **facts(options, name),
        "tokens": prepared["tokens"],
        **{key: value for key, value in asdict(job).items() if value},
        "original": costs.pop("original"),
        "runs": [{key: value for key, value in run.items() if key != "weights"} for run in runs],
        "costs": costs,
    }


def called(name: str, options: argparse.Namespace) -> str:
    """A job and the text that it was given, as files are named."""
    return name if options.text is None else f"{name}-{options.text.stem}"


def prepare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The model as a folder, and `rows.json`, the token ids."""
    stem = f"{Path(options.model).name}-{sha256(str(options.model).encode()).hexdigest()[:8]}"
    request = {
        "model": options.model,
        "source": str(options.cache / "source" / stem),
        "rows": str(folder / "rows.json"),
        "text": options.text and str(options.text),
        "samples": options.samples,
        "length": options.length,
        "seed": options.seed,
    }
    return ask("compare/evaluate.py prepare", request, folder / "prepare", sys.executable, options.threads)


def evaluate(
    job: Job, runs: list[dict[str, Any]], folder: Path, prepared: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """The costs of the original and of every distinct outcome, by SHA-256; the weights are removed."""
    outcomes = {run["sha256"]: run["weights"] for run in reversed(runs)}  # the first run's file is the one kept
    request = {
        "folder": prepared["folder"],
        "weights": list(outcomes.values()),
        "text": options.text and str(options.text),
        "inputs": job.inputs(),
        "cache": job.cache,
        "rotated": job.rotated,
        "threads": options.threads,
    }
    found = ask("compare/evaluate.py evaluate", request, folder / "evaluate", sys.executable, options.threads)
    if not options.keep:
        for path in outcomes.values():
            Path(path).unlink()
    return {"original": found["original"], **{digest: found[path] for digest, path in outcomes.items()}}


def ask(script: str, request: dict[str, Any], stem: Path, python: str, threads: int) -> dict[str, Any]:
    """Hand a request to a script in a process of its own and read its answer; its output goes to a file."""
    asked, answer, log = (stem.with_suffix(end) for end in (".request.json", ".answer.json", ".log"))
    asked.write_text(json.dumps({**request, "answer": str(answer)}, indent=1), encoding="utf-8")
    answer.unlink(missing_ok=True)
    script, *verb = script.split()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # everything is here; no time is lost waiting for a network
        "CUDA_VISIBLE_DEVICES": "",
    }
    with log.open("w", encoding="utf-8") as out:
        command = [python, str(HERE / script), *verb, str(asked)]
        code = subprocess.run(command, env=environment, stdout=out, stderr=out).returncode
    if code:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise SystemExit(f"{tail}\n\n{script} ended with {code}; the whole of what it said is in {log}")
    return json.loads(answer.read_text(encoding="utf-8"))


def keep_distinct(path: Path, runs: list[dict[str, Any]]) -> str:
    """The SHA-256 of a file of weights, which is removed when a run before has left the same."""
    summed = sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):  # in parts: a child's peak begins with what this process holds
            summed.update(part)
    digest = summed.hexdigest()
    if any(run["sha256"] == digest for run in runs):
        path.unlink()
    return digest


def python_of(side: str) -> str:
    return str(PEER) if side == "peer" else sys.executable


def facts(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """What is needed to repeat it."""
    model = [] if options.model == "smollm2" else [f"--model {Path(options.model).name}"]
    settings = ("repeats", "samples", "length", "threads", "seed", "peer_pipeline")
    words = [f"--{key.replace('_', '-')} {getattr(options, key)}" for key in settings]
    words += [f"--text {options.text}"] if options.text else []
    words += [f"--only {options.only}"] if options.only else []
    words += ["--write"] if options.write else []
    chosen = [side for side in SIDES if options.only in (None, side)]
    return {
        "command": " ".join(["python benchmarks/compare.py", name, *model, *words]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "model": Path(options.model).name,
        "dtype": "bfloat16",
        **{key: getattr(options, key) for key in settings},
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {NAMES[side]: versions(side) for side in chosen},
        "commit": commit(),
    }


def cpu() -> str:
    """Name of the processor, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    """Of the working tree, marked when tracked sources differ from it."""
    finished = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True
    )
    return finished.stdout.strip()


def versions(side: str) -> dict[str, str]:
    """Versions of what matters in the environment of a side."""
    program = (
        "import json; from importlib.metadata import version; "
        f"print(json.dumps({{name: version(name) for name in {PACKAGES[side]}}}))"
    )
    return json.loads(subprocess.run([python_of(side), "-c", program], check=True, stdout=subprocess.PIPE).stdout)


ROWS = {  # what the table says: key -> (words, form, whether of the runs or of their weights)
    "compress_seconds": ("seconds of `oneshot`", "{:.1f}", "run"),
    "compress_cpu_seconds": ("its CPU seconds, all threads", "{:.1f}", "run"),
    "others_cpu_seconds": ("CPU seconds of other processes meanwhile", "{:.1f}", "run"),
    "dense_seconds": ("seconds to read the weights afterwards", "{:.1f}", "run"),
    "peak_megabytes": ("peak memory, MB", "{:.0f}", "run"),
    "loaded_megabytes": ("of it before `oneshot`, MB", "{:.0f}", "run"),
    "import_seconds": ("seconds of imports", "{:.1f}", "run"),
    "load_seconds": ("seconds of loading", "{:.1f}", "run"),
    "perplexity": ("perplexity", "{:.3f}", "cost"),
    "kl": ("mean KL to the original", "{:.4f}", "cost"),
    "top1_agreement": ("top-1 agreement", "{:.4f}", "cost"),
    "zeros": ("share of zero weights", "{:.4f}", "cost"),
    "two_of_four": ("share of fours with two zeros", "{:.4f}", "cost"),
}


def table(found: dict[str, Any]) -> str:
    """Medians, least and greatest, and the ratio of medians, theirs over ours."""
    sides = [side for side in reversed(SIDES) if any(run["side"] == side for run in found["runs"])]
    heads = [NAMES[side] for side in sides] + ["theirs / ours"]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for key, (words, form, of) in ROWS.items():
        columns = [values(found, side, key, of) for side in sides]
        if any(None in column for column in columns):  # the system does not say
            continue
        middle = [median(column) for column in columns]
        rated = len(middle) == 2 and middle[0] and key != "others_cpu_seconds"
        ratio = f"{middle[1] / middle[0]:.2f}" if rated else ""
        lines.append(f"| {words} | " + " | ".join([*(spread(column, form) for column in columns), ratio]) + " |")
    return "\n".join(lines)


def values(found: dict[str, Any], side: str, key: str, of: str) -> list[Any]:
    """A number of every run of a side."""
    runs = [run for run in found["runs"] if run["side"] == side]
    return [run[key] if of == "run" else found["costs"][run["sha256"]][key] for run in runs]


def spread(column: list[float], form: str) -> str:
    """The median, and least and greatest where they look different."""
    middle, least, greatest = (form.format(value) for value in (median(column), min(column), max(column)))
    return middle if least == greatest else f"{middle} ({least} to {greatest})"


def page(found: dict[str, Any]) -> str:
    """The result for a person."""
    sides = [", ".join(f"{name} {number}" for name, number in part.items()) for part in found["versions"].values()]
    averages = [run["load_average_before"] for run in found["runs"]]
    errors = sorted({round(cost["kl_standard_error"], 4) for cost in found["costs"].values()})
    tokens = next(iter(found["costs"].values()))["tokens"]
    return "\n".join(
        [
            f"# {found['title']}: coldpress against llm-compressor",
            "",
            f"`{found['command']}` on {found['date']}, commit {found['commit']}.",
            "",
            table(found),
            "",
            f"Medians of {found['repeats']} alternating runs each, in brackets the least and the greatest.",
            f"Model `{found['model']}` in {found['dtype']}, {found['samples']} samples of {found['length']} tokens.",
            f"Perplexity of the original: {found['original']['perplexity']:.3f}, on {tokens} held-out tokens; standard "
            f"error of the KL: {', '.join(map(str, errors))}.",
            f"{found['cpu']}, {found['threads']} of {found['cores']} cores, Python {found['python']}, load average "
            f"before the runs {min(averages)} to {max(averages)} (it still holds the run before).",
            *(f"{part}." for part in sides),
            "",
        ]
    )


def check_plugins(parser: argparse.ArgumentParser, jobs: list[str]) -> None:
    """Complain now about modifiers that are not installed on our side."""
    known = {entry.name for entry in entry_points(group="coldpress.modifiers")}
    for name in jobs:
        missing = sorted({modifier for modifier, _ in JOBS[name].modifiers} - known)
        if missing:
            parser.error(
                f"the job {name} needs {' and '.join(missing)}, which no installed distribution offers to coldpress: "
                "install the plugin (`make venv`), or measure the other side with --only peer"
            )


def make_peer() -> None:
    """The peer's environment, on first use."""
    if not (ROOT / ".venv-peer" / ".stamp").exists():
        subprocess.run(["make", ".venv-peer/.stamp"], cwd=ROOT, check=True, stdout=sys.stderr)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="+", metavar="JOB", choices=list(JOBS), help=", ".join(JOBS))
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--only", choices=SIDES, help="run one side")
    parser.add_argument("--model", default="smollm2", help="another checkpoint: what `coldpress.load_model` reads")
    parser.add_argument("--samples", type=int, default=32, help="of calibration data")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sample")
    parser.add_argument(
        "--text", type=Path, help="a file of passages (texts.py) in place of coldpress/short: half to calibrate on"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--peer-pipeline",
        choices=("independent", "sequential"),
        default="independent",
        help="of llm-compressor: a sweep over the data for every modifier, its default, or one for all",
    )
    parser.add_argument(
        "--cache", type=Path, default=ROOT / "out" / "compare", help="where the model and logs are kept"
    )
    parser.add_argument("--keep", action="store_true", help="keep the weights of the runs in the cache")
    parser.add_argument("--write", action="store_true", help="write results/compare-JOB.{md,json}")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write stores results of both sides, so it does not go with --only")
    if min(options.repeats, options.samples, options.length, options.threads) < 1:
        parser.error("--repeats, --samples, --length and --threads are at least 1")
    if options.only != "peer":
        check_plugins(parser, options.jobs)
    return options


def main() -> None:
    options = read_options()
    if options.only != "ours":
        make_peer()
    for name in options.jobs:
        found = run_job(name, options)
        print(page(found))
        if options.write:
            stem = HERE / "results" / f"compare-{called(name, options)}"
            stem.with_suffix(".md").write_text(page(found), encoding="utf-8")
            stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
