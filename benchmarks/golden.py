"""Do every recipe and every pipeline give the same bytes as at an earlier commit?

    python benchmarks/golden.py --write                       at that commit
    python benchmarks/golden.py                               at a later one
    python benchmarks/golden.py --only 'llama/awq-*' smollm2/w8a8

A case is one call of `oneshot`, on a tiny model or on SmolLM2; golden_cases.py lists them.
results/golden.json has, for every tensor of its checkpoint and for the logits of the returned model, the first 16
digits of the SHA-256 of dtype, shape and bytes.
The exit status is 1 if a tensor differs in a case that is not in CHANGED.
Bytes depend on the version of torch and on the processor: on another machine, write the file anew at the commit that it
names before comparing.
"""

import argparse
import json
import logging
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from golden_cases import EMBEDDED, Case, every_case
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

import coldpress

FILE = Path(__file__).parent / "results/golden.json"
THREADS = 1  # no result depends on how work is divided among cores
DIGITS = 16  # of a SHA-256 that are kept
LOGITS = "logits of the returned model"

REFINED = "SparseGPT goes over its masks again; with `refine_passes: 0` the tensors are those of before"
CHANGED: dict[str, str] = {
    "llama/kv-cache-gptq": "layer by layer, keys and values of the first batch of a kind of block were counted twice",
    "llama/awq-sparsegpt-nvfp4": "the global scale was that of the weights before SparseGPT changed them",
    "llama/ragged": "samples of near length are one batch now, so that batches of several rows hold others",
    **dict.fromkeys(
        [
            *(f"llama/sparsegpt{more}" for more in ("", "-2of4", "-2of4_gptq-w4a16", "-2of4_w4a16")),
            *(f"smollm2/sparsegpt{more}" for more in ("", "-2of4", "-2of4_gptq-w4a16", "-2of4_w4a16")),
            *("llama/sparsegpt-gptq", "llama/sparsegpt-by-block", "llama/owl-basic-sparsegpt"),
            *("mixtral/sparsegpt-gptq-basic", "gpt2/sparsegpt-streamed"),
        ],
        REFINED,
    ),
}
"""Cases that are expected to differ from results/golden.json, each with what was mended or changed on purpose."""

WIDTH, BLOCKS, VOCABULARY, POSITIONS = 128, 3, 320, 128
SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def llama() -> nn.Module:
    return filled(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHARED)))


def llama_tied() -> nn.Module:
    config = transformers.LlamaConfig(**{**SHARED, "tie_word_embeddings": True})
    return filled(transformers.LlamaForCausalLM(config), torch.bfloat16)


def llama_pruned() -> nn.Module:
    """Half of the weights of every layer are zero, the smallest."""
    model = llama()
    for parameter in model.model.layers.parameters():
        if parameter.ndim == 2:
            parameter.data *= parameter.abs() > parameter.abs().median()
    return model


def qwen3_moe() -> nn.Module:
    config = transformers.Qwen3MoeConfig(
        **SHARED, head_dim=32, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2
    )
    return filled(transformers.Qwen3MoeForCausalLM(config))


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(
        **{**SHARED, "intermediate_size": WIDTH}, num_local_experts=4, num_experts_per_tok=2
    )
    return filled(transformers.MixtralForCausalLM(config))


def opt() -> nn.Module:
    config = transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        ffn_dim=2 * WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        word_embed_proj_dim=WIDTH,
    )
    return filled(transformers.OPTForCausalLM(config))


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        n_embd=WIDTH,
        n_layer=BLOCKS,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    return filled(transformers.GPT2LMHeadModel(config))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "llama-tied": llama_tied,
    "llama-pruned": llama_pruned,
    "qwen3_moe": qwen3_moe,
    "mixtral": mixtral,
    "opt": opt,
    "gpt2": gpt2,
}


def filled(model: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model with random weights that keep the size of a signal; norms make a few channels much larger."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            noise /= parameter.shape[-1] ** 0.5
        elif name.endswith("bias"):
            noise *= 0.1
        else:
            noise = 1 + 0.1 * noise
            noise[::37] *= 6
        parameter.data = noise.to(dtype)
    model.tie_weights()
    return model.eval()


def rows(kind: str) -> list[dict[str, list[int]]]:
    """Calibration data for tiny models: random tokens, of one length (`even`) or of many (`ragged`)."""
    generator = torch.Generator().manual_seed(1)
    lengths = [64] * 8 if kind == "even" else [64, 48, 57, 33, 60, 21, 64, 50]
    return [{"input_ids": torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()} for n in lengths]


class InterruptedRun(KeyboardInterrupt):
    """Stops a run as Ctrl-C would."""


@contextmanager
def interrupted(output: Path, stages: int) -> Iterator[None]:
    """Stop the run inside at the first forward of a module after so many stages are in its journal."""
    journal = output.with_name(f"{output.name}.partial") / "journal.jsonl"

    def stop(module: nn.Module, args: Any) -> None:
        if journal.exists() and journal.read_bytes().count(b"\n") > stages:  # its first line is no stage
            raise InterruptedRun

    handle = register_module_forward_pre_hook(stop)
    try:
        yield
    except InterruptedRun:
        return
    finally:
        handle.remove()
    raise RuntimeError(f"the run was to be interrupted after {stages} stages, and ended by itself")


def run(case: Case, folder: Path) -> dict[str, str]:
    """Compress, and hash the checkpoint and the logits of the returned model."""
    output = folder / "out"
    for attempt in (interrupted(output, case.stages), nullcontext()) if case.stages else (nullcontext(),):
        with attempt:
            model = compress(case, folder / "source", output)
    ids = torch.arange(3, 35)[None]  # [1, 32]
    with torch.no_grad():
        found = {LOGITS: digest(model(input_ids=ids).logits)}
    for file in sorted(output.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: digest(opened.get_tensor(name)) for name in sorted(opened.keys())}
    return found


def compress(case: Case, source: Path, output: Path) -> nn.Module:
    if case.model == EMBEDDED:
        data = {"dataset": "coldpress/short", "num_calibration_samples": 8, "max_seq_length": 128}
        model: Any = EMBEDDED
    else:
        data, model = {"dataset": rows(case.rows)}, MODELS[case.model]()
    if case.streamed:
        model.save_pretrained(source, max_shard_size="300KB")
        model, data = str(source), {**data, "stream_weights": True}
    return coldpress.oneshot(
        model, case.recipe, output_dir=str(output), device="cpu", quiet=True, **{**data, **case.arguments}
    )


def digest(tensor: Tensor) -> str:
    """The start of the SHA-256 of a tensor's dtype, shape and bytes."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + data.tobytes()).hexdigest()[:DIGITS]


def measured(names: list[str]) -> Iterator[tuple[str, dict[str, str] | str, float]]:
    """Name, hashes or what went wrong, and seconds of each case."""
    cases = every_case()
    for name in names:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                found: dict[str, str] | str = run(cases[name], Path(folder))
            except Exception as error:
                found = f"{type(error).__name__}: {error}".splitlines()[0]
        yield name, found, time.perf_counter() - start


def difference(before: dict[str, str] | None, now: dict[str, str] | str) -> str:
    """What differs between two runs of a case, in words; empty where nothing does."""
    if isinstance(now, str):
        return now
    if before is None:
        return ""
    names = before.keys() | now.keys()
    differing = [name for name in [*sorted(names - {LOGITS}), LOGITS] if before.get(name) != now.get(name)]
    return f"{len(differing)} of {len(names)} tensors, the first is {differing[0]}" if differing else ""


def write(names: list[str]) -> int:
    """Run every case and write results/golden.json, unless one fails."""
    cases, failed = {}, 0
    for name, found, seconds in measured(names):
        print(f"{seconds:6.1f} s  {name}  {found if isinstance(found, str) else len(found)}", flush=True)
        cases[name] = found
        failed += isinstance(found, str)
    if failed:
        print(f"{failed} of {len(cases)} cases failed; {FILE.name} is left as it was")
        return 1
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=FILE.parent, check=True, capture_output=True, text=True)
    record = {"command": "python benchmarks/golden.py --write", "commit": commit.stdout.strip()[:7]}
    FILE.write_text(json.dumps({**record, **surroundings(), "cases": cases}, indent=0) + "\n", encoding="utf-8")
    return 0


def surroundings() -> dict[str, Any]:
    """What bytes depend on besides our code."""
    versions = {name: version(name) for name in ("torch", "transformers")}
    return {**versions, "processor": processor(), "threads": THREADS}


def processor() -> str:
    """The processor's name, where the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def compare(names: list[str], *, whole: bool) -> int:
    """Run cases and list those whose hashes differ from results/golden.json."""
    record = json.loads(FILE.read_text(encoding="utf-8"))
    for name, value in surroundings().items():
        if record[name] != value:
            print(f"{name} is {value}, and {FILE.name} was made with {record[name]}: bytes may differ for that reason")
    differing, before = {}, record["cases"]
    for name, found, seconds in measured(names):
        problem = difference(before.get(name), found)
        state = "DIFFERS" if problem else "new" if name not in before else "same"
        print(f"{seconds:6.1f} s  {state:7}  {name}", flush=True)
        if problem:
            differing[name] = problem
    if whole:
        differing |= {name: "there is no such case any more" for name in before if name not in names}
    return verdict(differing, names, record["commit"])


def verdict(differing: dict[str, str], names: list[str], commit: str) -> int:
    """Print what differs; 1 if some case differs that is not in CHANGED."""
    unexpected = {name: problem for name, problem in differing.items() if name not in CHANGED}
    print(f"\n{len(differing)} of {len(names)} cases differ from {commit}, {len(unexpected)} of them unexpectedly")
    for name, problem in differing.items():
        print(f"  {name}: {problem}{f' (expected: {CHANGED[name]})' if name in CHANGED else ''}")
    for name in CHANGED.keys() & set(names) - differing.keys():
        print(f"  {name} is named in CHANGED and does not differ")
    return int(bool(unexpected))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write results/golden.json")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases by name or pattern, such as 'smollm2/*'")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write is for all cases, so that all of them are of one commit")
    patterns = options.only or ["*"]
    names = [name for name in every_case() if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not names:
        parser.error(f"no case is called {' or '.join(patterns)}; there are {', '.join(every_case())}")
    torch.set_num_threads(THREADS)
    logging.getLogger("coldpress").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    start = time.perf_counter()
    status = write(names) if options.write else compare(names, whole=not options.only)
    print(f"{len(names)} cases in {time.perf_counter() - start:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
