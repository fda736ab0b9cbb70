"""Several ranks against one process: time, memory, bytes, and what is left of a run when a rank is killed.

    python benchmarks/ranks.py speed --write      two ranks of one thread against one process of one and of two
    python benchmarks/ranks.py kills --trials 20 --write
    python benchmarks/ranks.py peer --write       the same beside llm-compressor's GPTQ over gloo
    python benchmarks/ranks.py recipes --write    every recipe of `recipes/` on a tiny model, 1, 2 and 3 ranks

speed    SmolLM2, GPTQ W4A16, 32 samples of 512 tokens.  Seconds are those of the run as its report has them, without
         imports; memory is the peak of each process.
peer     one and two ranks of one thread, of both; llm-compressor runs in `.venv-peer` (`make .venv-peer/.stamp`), on
         the same token ids; its seconds are those of `oneshot`, without loading.  Digests are those of all weights.
kills    a random rank of two is killed after a random stage; what the others say, how long they take to, and whether
         the run that resumes, with one to three ranks, gives the bytes of one that was not killed.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from datetime import date
from hashlib import sha256
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
RECIPES = Path(__file__).parents[1] / "recipes"
PEER = Path(__file__).parents[1] / ".venv-peer" / "bin" / "python"
SAMPLES = 32
TIMED = ("report.json", "report.html", "manifest.json")
GPTQ = "GPTQModifier: {scheme: W4A16, group_size: 64, ignore: [lm_head]}"


def child(arguments: str) -> None:
    """One rank: calls oneshot, and writes what its process held at most."""
    import torch

    from coldpress import oneshot

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    settings = json.loads(arguments)
    peak = settings.pop("peak", None)
    oneshot(quiet=True, return_model=False, **settings)
    if peak:
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        Path(f"{peak}-{os.environ.get('RANK', '0')}").write_text(str(held))


def start(size: int, threads: int, settings: dict) -> list[subprocess.Popen]:
    """The processes of a run of ours."""
    return launch(size, threads, [sys.executable, __file__, "child", json.dumps(settings)])


def launch(size: int, threads: int, command: list[str]) -> list[subprocess.Popen]:
    """Processes as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = []
    for rank in range(size):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        if size > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        found.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    return found


def digests(folder: Path) -> dict[str, str]:
    return {p.name: sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name not in TIMED}


def ours(size: int, threads: int, length: int, folder: Path) -> dict:
    """A run of ours, with so many processes of so many threads."""
    data = {"dataset": "coldpress/short", "num_calibration_samples": SAMPLES, "max_seq_length": length}
    out, peak = folder / f"{size}x{threads}", folder / f"peak-{size}x{threads}"
    settings = {"model": "smollm2", "recipe": GPTQ, "output_dir": str(out), "peak": str(peak), **data}
    finish(start(size, threads, settings))
    report = json.loads((out / "report.json").read_text())
    peaks = [int(Path(f"{peak}-{rank}").read_text()) for rank in range(size)]
    return {"seconds": report["seconds"], "peak_bytes": peaks, "digests": digests(out)}


def finish(processes: list[subprocess.Popen]) -> None:
    """Wait for processes, all of which must end well."""
    errors = [process.communicate()[1] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(errors)[-3000:]


def speed(arguments: argparse.Namespace, folder: Path) -> tuple[dict, str]:
    shapes = (("1 x 1", 1, 1), ("2 x 1", 2, 1), ("1 x 2", 1, 2))
    found = {name: ours(size, threads, arguments.length, folder) for name, size, threads in shapes}
    same = found["1 x 1"].pop("digests") == found["2 x 1"].pop("digests")
    found["1 x 2"].pop("digests")
    base = found["1 x 1"]["seconds"]
    rows = [
        f"| {name} | {one['seconds']:.1f} | {base / one['seconds']:.2f} | "
        f"{', '.join(f'{peak / 2**20:.0f}' for peak in one['peak_bytes'])} |"
        for name, one in found.items()
    ]
    table = "| processes x threads | seconds | times as fast | MiB at most |\n|---|--:|--:|--:|\n" + "\n".join(rows)
    words = f"{table}\n\nBytes of 2 x 1 and 1 x 1: {'the same' if same else 'NOT the same'}."
    return {"runs": found, "same_bytes": same}, words


def peer(arguments: argparse.Namespace, folder: Path) -> tuple[dict, str]:
    """One and two ranks, of both, on the same token ids."""
    from coldpress import load_model, load_tokenizer
    from coldpress.arguments import DatasetArguments
    from coldpress.calibration.dataset import load_batches

    model = load_model("smollm2", dtype="bfloat16", device="cpu")
    tokenizer = load_tokenizer("smollm2", model)
    data = DatasetArguments(dataset="coldpress/short", num_calibration_samples=SAMPLES, max_seq_length=arguments.length)
    rows = [row for batch in load_batches(data, tokenizer, 0) for row in batch["input_ids"].tolist()]
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
    gptq = {"ignore": ["lm_head"], "config_groups": {"all": {"targets": ["Linear"], "weights": weights}}}
    found: dict[str, dict[str, dict]] = {"llm-compressor": {}, "coldpress": {}}
    for size in (1, 2):
        name = f"{size} x 1"
        answer, request = folder / f"theirs-{size}", folder / f"theirs-{size}.json"
        asked = {"model": str(folder / "model"), "rows": rows, "gptq": gptq, "answer": str(answer)}
        request.write_text(json.dumps(asked))
        finish(launch(size, 1, [str(PEER), str(Path(__file__).parent / "compare" / "peer_rank.py"), str(request)]))
        each = [json.loads(Path(f"{answer}-{rank}").read_text()) for rank in range(size)]
        found["llm-compressor"][name] = {
            "seconds": max(one["seconds"] for one in each),
            "peak_bytes": [one["peak_bytes"] for one in each],
            "digests": [one["sha256"] for one in each],
        }
        found["coldpress"][name] = ours(size, 1, arguments.length, folder)
    rows_of_table = [
        f"| {side} | {name} | {one['seconds']:.1f} | {runs['1 x 1']['seconds'] / one['seconds']:.2f} | "
        f"{', '.join(f'{peak / 2**20:.0f}' for peak in one['peak_bytes'])} |"
        for side, runs in found.items()
        for name, one in runs.items()
    ]
    head = "| | processes x threads | seconds | times as fast as one | MiB at most |\n|---|---|--:|--:|--:|\n"
    theirs = found["llm-compressor"]
    alike = set(theirs["2 x 1"].pop("digests")) == set(theirs["1 x 1"].pop("digests"))
    same = found["coldpress"]["2 x 1"].pop("digests") == found["coldpress"]["1 x 1"].pop("digests")
    words = {True: "the same", False: "not the same"}
    end = f"Bytes of two ranks and one: llm-compressor {words[alike]}, coldpress {words[same]}."
    return {"runs": found, "same_bytes": {"llm-compressor": alike, "coldpress": same}}, (
        head + "\n".join(rows_of_table) + f"\n\n{end}"
    )


def kills(arguments: argparse.Namespace, folder: Path) -> tuple[dict, str]:
    from coldpress.testing.models import tiny_llama, tiny_tokenizer

    model, draw = folder / "model", random.Random(arguments.seed)
    tiny_llama(hidden=128, layers=6).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    rows = [[3 + (7 * i + j * j) % 250 for j in range(60)] for i in range(7)]
    settings = {"model": str(model), "recipe": GPTQ, "dataset": rows, "num_calibration_samples": 7}
    settings |= {"max_seq_length": 64, "batch_size": 1}
    whole = folder / "whole"
    assert [p.wait() for p in start(1, 1, {**settings, "output_dir": str(whole)})] == [0]
    found = []
    for trial in range(arguments.trials):
        out, victim, after = folder / f"out{trial}", draw.randrange(2), draw.randrange(1, 8)
        processes = start(2, 1, {**settings, "output_dir": str(out)})
        journal = Path(f"{out}.partial") / "journal.jsonl"
        while processes[victim].poll() is None and (
            not journal.exists() or len(journal.read_bytes().splitlines()) < after
        ):
            time.sleep(0.002)
        processes[victim].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        message = processes[1 - victim].communicate()[1].strip().splitlines()[-1:]
        seconds = time.monotonic() - killed
        late = out.exists()
        size = draw.randrange(1, 4)
        resumed = [] if late else start(size, 1, {**settings, "output_dir": str(out)})
        errors = [process.communicate()[1] for process in resumed]
        sound = not any(process.returncode for process in resumed)
        line = {
            "victim": victim,
            "after": after,
            "finished_before": late,
            "seconds": round(seconds, 2),
            "named": f"rank {victim} ended" in " ".join(message),
            "resumed_with": size,
            "same_bytes": sound and digests(out) == digests(whole),
        }
        if not sound:
            line["errors"] = [error.strip().rpartition("\n")[2] for error in errors]
        found.append(line)
        shutil.rmtree(out, ignore_errors=True)
        print(line, flush=True)
    true = [line for line in found if not line["finished_before"]]
    words = (
        f"{len(true)} kills: {sum(line['named'] for line in true)} times the other rank named the one that ended, "
        f"within {max(line['seconds'] for line in true):.1f} s; {sum(line['same_bytes'] for line in true)} times the "
        f"run that resumed, with 1 to 3 ranks, gave the bytes of one that was not killed."
    )
    return {"trials": found}, words


def recipes(arguments: argparse.Namespace, folder: Path) -> tuple[dict, str]:
    from coldpress import oneshot
    from coldpress.testing.models import tiny_llama, tiny_tokenizer
    from coldpress.testing.ranks import oneshot_together

    model = folder / "model"
    tiny_llama(hidden=256).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    rows = [[3 + (7 * i + j * j) % 250 for j in range(40 + 9 * i)] for i in range(5)]
    paths = sorted(RECIPES.glob("*.yaml"))

    def call(path: Path, size: int) -> dict:
        settings = {"model": str(model), "recipe": str(path), "output_dir": str(folder / f"{path.stem}-{size}")}
        return {**settings, "dataset": rows, "num_calibration_samples": 5, "max_seq_length": 96, "batch_size": 1}

    refused = {}
    for path in paths:
        try:
            oneshot(quiet=True, return_model=False, **call(path, 1))
        except Exception as error:
            refused[path.stem] = f"{type(error).__name__}: {error}"
    sound = [path for path in paths if path.stem not in refused]
    found = {}
    for size in (2, 3):
        errors = oneshot_together(size, *(call(path, size) for path in sound))
        for number, path in enumerate(sound):
            failed = [one[number] for one in errors if len(one) > number and one[number]]
            same = not failed and digests(folder / f"{path.stem}-{size}") == digests(folder / f"{path.stem}-1")
            found.setdefault(path.stem, {})[size] = failed[0] if failed else same
    rows_ = [
        f"| {name} | {' | '.join('same' if one is True else str(one) for one in sizes.values())} |"
        for name, sizes in found.items()
    ]
    rows_ += [f"| {name} | refused by one process: {why[:80]} | |" for name, why in refused.items()]
    return {"recipes": found, "refused": refused}, "| recipe | 2 ranks | 3 ranks |\n|---|---|---|\n" + "\n".join(rows_)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "peer", "kills", "recipes"])
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    import torch

    with tempfile.TemporaryDirectory() as folder:
        kinds = {"speed": speed, "peer": peer, "kills": kills, "recipes": recipes}
        numbers, words = kinds[arguments.what](arguments, Path(folder))
    options = f" --trials {arguments.trials} --seed {arguments.seed}" if arguments.what == "kills" else ""
    options += (
        f" --length {arguments.length}" if arguments.what in ("speed", "peer") and arguments.length != 512 else ""
    )
    command = f"python benchmarks/ranks.py {arguments.what}{options}"
    text = f"# Ranks: {arguments.what}\n\n`{command}` on {date.today()}: torch {torch.__version__}.\n\n{words}\n"
    print(text)
    if arguments.write:
        (RESULTS / f"ranks-{arguments.what}.md").write_text(text)
        (RESULTS / f"ranks-{arguments.what}.json").write_text(
            json.dumps({"command": command, **numbers}, indent=2) + "\n"
        )


if __name__ == "__main__":
    child(sys.argv[2]) if sys.argv[1:2] == ["child"] else main()
