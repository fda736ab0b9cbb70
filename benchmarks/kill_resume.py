"""Kill `coldpress compress` at random instants, go on until it is done, and compare every byte.

    python benchmarks/kill_resume.py --trials 10 --seed 0 --write

Each trial starts a run, sends it SIGKILL, and starts the same command again; every further attempt is killed too with
a probability of one third.  The instant is random: after a number of finished stages that is drawn from none to all,
plus a time that is drawn from none to what a stage takes (after the last, to half a second: the finish); so a run that
is slow today is not killed earlier.
A run that is done before it can be killed does not count.  Files are compared by SHA-256, all of them but report.json
and manifest.json, which say how long things took.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

from random_llama import build

RESULTS = Path(__file__).parent / "results"
FINISHING = 0.5  # seconds after the last stage in which shards are joined, small files written, the folder renamed
TIMED = ("report.json", "report.html", "manifest.json")
MODEL = {
    "vocab_size": 2048,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
W8A8 = """
pipeline: sequential
QuantizationModifier:
  ignore: [lm_head]
  config_groups:
    all:
      targets: [Linear]
      weights: {num_bits: 8, strategy: channel}
      input_activations: {num_bits: 8, strategy: tensor}
"""
TEXT = "a run that is killed at any instant resumes where it was and gives the same bytes"


class Case:
    """One way of compressing, with what an undisturbed run of it gives."""

    def __init__(self, name: str, model: Path, cache: Path, options: list[str]) -> None:
        self.name, self.cache = name, cache
        self.command = [sys.executable, "-m", "coldpress", "compress", str(model), *options, "--quiet", "--output"]
        whole = cache / f"{name}-whole"
        run = self.start(whole)
        assert run.wait() == 0, run.stderr.read()
        self.sums = checksums(whole)
        stages = json.loads((whole / "manifest.json").read_text())["stages"]
        self.stages = len(stages)
        self.seconds = sum(stage["seconds"] for stage in stages) / len(stages)

    def start(self, output: Path) -> subprocess.Popen:
        """Begin to compress into a folder, or go on with it."""
        return subprocess.Popen([*self.command, str(output)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def checksums(folder: Path) -> dict[str, str]:
    """Name to SHA-256 of every file whose bytes must not depend on when it was made."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in TIMED)
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


def trial(case: Case, number: int, chance: random.Random) -> dict:
    """Kill once or more, finish, compare."""
    output = case.cache / f"{case.name}-{number}"
    partial = output.with_name(f"{output.name}.partial")
    kills: list[dict] = []
    while not output.exists():
        run = case.start(output)
        if kills and chance.random() > 1 / 3:
            assert run.wait(600) == 0, run.stderr.read().decode()
            break
        stages = chance.randint(0, case.stages)
        longest = case.seconds if stages < case.stages else FINISHING
        kill = _kill(run, partial, stages=stages, delay=chance.uniform(0, longest))
        if kill:
            kills.append(kill)
        elif not kills:  # it was faster
            shutil.rmtree(output)
    same = checksums(output) == case.sums
    shutil.rmtree(output)
    shutil.rmtree(partial, ignore_errors=True)
    return {"case": case.name, "trial": number, "kills": kills, "same": same}


def _kill(run: subprocess.Popen, partial: Path, *, stages: int, delay: float) -> dict | None:
    """Kill a run so long after it has finished so many stages; None when it was done before."""
    journal = partial / "journal.jsonl"
    while run.poll() is None and (not partial.exists() or (_finished(journal) or 0) < stages):
        time.sleep(0.002)
    try:
        run.wait(delay)
    except subprocess.TimeoutExpired:
        run.send_signal(signal.SIGKILL)
    code = run.wait()
    assert code in (0, -signal.SIGKILL), run.stderr.read().decode()
    return {"asked": stages, "finished_stages": _finished(journal), "later_by": round(delay, 3)} if code else None


def _finished(journal: Path) -> int | None:
    """How many stages a journal has; None when it is gone."""
    try:
        return max(0, journal.read_bytes().count(b"\n") - 1)
    except OSError:
        return None


def cases(cache: Path, only: str = "") -> list[Case]:
    """Weights only, where nothing runs; and static inputs, through the sequential pipeline; `only` one of them."""
    model = cache / "model"
    build(model, **MODEL)
    (cache / "w8a8.yaml").write_text(W8A8)
    chance = random.Random(0)
    texts = [{"text": " ".join(chance.choices(TEXT.split(), k=30))} for _ in range(4)]
    (cache / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    data = ["--dataset", str(cache / "texts.jsonl"), "--num-calibration-samples", "4", "--max-seq-length", "64"]
    options = {
        "w4a16": ["--scheme", "W4A16", "--algorithm", "rtn", "--group-size", "128"],
        "w8a8-static": ["--recipe", str(cache / "w8a8.yaml"), *data],
    }
    return [Case(name, model, cache, words) for name, words in options.items() if only in ("", name)]


def measure(trials: int, seed: int, cache: Path) -> dict:
    """All trials of all cases."""
    chance, results = random.Random(seed), []
    known = cases(cache)
    for case in known:
        for number in range(trials):
            results.append(trial(case, number, chance))
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    return {
        "model": MODEL,
        "seed": seed,
        "stages": {case.name: case.stages for case in known},
        "seconds_per_stage": {case.name: round(case.seconds, 3) for case in known},
        "files": {case.name: len(case.sums) for case in known},
        "same": sum(result["same"] for result in results),
        "trials": len(results),
        "results": results,
    }


def table(outcome: dict, command: str) -> str:
    """The outcome for a person."""
    lines = [
        "# Killed and resumed",
        "",
        f"`{command}`",
        "",
        f"**{outcome['same']} of {outcome['trials']}** killed runs gave, once resumed, every file byte for byte as an "
        "undisturbed run does",
        "(all but report.json and manifest.json, which say how long things took).",
        "A run has 10 stages; `3 + 0.12 s` means: killed 0.12 s after the third was finished; stages that an earlier",
        "attempt has finished count.",
        "",
        "| case | trial | killed after | stages kept | same bytes |",
        "|---|--:|---|---|---|",
    ]
    for result in outcome["results"]:
        kills = result["kills"]
        when = ", ".join(f"{kill['asked']} + {kill['later_by']} s" for kill in kills)
        kept = ", ".join(
            "all, renamed" if kill["finished_stages"] is None else str(kill["finished_stages"]) for kill in kills
        )
        lines.append(
            f"| {result['case']} | {result['trial']} | {when} | {kept} | {'yes' if result['same'] else 'NO'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10, help="of each of the two cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write results/kill_resume.{md,json}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        outcome = measure(options.trials, options.seed, Path(cache))
    text = table(outcome, f"python benchmarks/kill_resume.py --trials {options.trials} --seed {options.seed} --write")
    print(text)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "kill_resume.md").write_text(text)
        (RESULTS / "kill_resume.json").write_text(json.dumps(outcome, indent=1) + "\n")
    sys.exit(outcome["same"] != outcome["trials"])


if __name__ == "__main__":
    main()
