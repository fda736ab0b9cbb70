"""What vLLM serves of every scheme, and whether it says what our model in memory says.

    python benchmarks/served.py --write                   # all of them, about 13 minutes
    python benchmarks/served.py W4A16 FP8 --write         # these lines of the table
    python benchmarks/served.py --first-layers --write    # without the whole models, about 5 minutes

SmolLM2 is rounded to nearest and written; `load_model` reads it, as `coldpress evaluate` does, and says how likely it
finds each of 511 tokens of held-out text.  vLLM, in its own environment, loads the same folder, continues three
prompts, and says the same of the same tokens.  Both compute in float32, vLLM in float16 where its kernel must.
Where its kernel does not do what the scheme says, our model is made to do the same, and the table says what.

Where inputs are rounded, a model of 30 layers magnifies every difference in the last bit of a float32: one number
that falls to the other side of a tie moves its token, and the next layer rounds the token anew.  So there are two
distances: the mean absolute difference of the log-probabilities of the whole model, beside that between our model and
itself with the output of every module changed in the last bit (`noise`); and the median absolute difference of the
first layer alone, served as a model of its own, where nothing has been magnified yet.  `moved` is how far the scheme
moves our first layer from that of the original, which is what a server that did not do as it says would be off.

Where vLLM lists no kernel for CPUs but has an emulation of its own, that is offered to it (`emulated`); the refusal
without it is kept.  Groups are of 64 columns where the preset says 128, which does not divide the 576 columns of
SmolLM2; schemes whose groups of 128 are fixed use it widened to 640, with heads and channels of zeros.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from served_cases import CASES, Case

from coldpress import load_model, load_tokenizer, oneshot
from coldpress.calibration import short
from coldpress_quantization import QuantizationModifier
from coldpress_spinquant import SpinQuantModifier

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/served"
PYTHON = ROOT / ".venv-vllm/bin/python"
PROMPTS = {"The capital of France is": "Paris", "The largest ocean on Earth is the": "Pacific", "1, 2, 3, 4, 5,": "6"}
TOKENS, MORE = 512, 8  # of the text; after each prompt
BATCH = 6  # checkpoints that one process of vLLM serves
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_INT4_W4A8": "0",  # where there is AMX, vLLM would round the inputs of int4 layers, unasked
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def held_out() -> list[int]:
    """The beginning of the held-out text."""
    text = "\n\n".join(row["text"] for row in short.load("held_out")[:16])
    return load_tokenizer("smollm2")(text)["input_ids"][:TOKENS]


def source(folder: Path, *, wide: bool = False, layers: int = 30) -> Path:
    """SmolLM2, or its first layers, in bfloat16 in a folder, once."""
    home = folder / f"{'wide' if wide else 'plain'}-{layers}"
    if not home.exists():
        model = load_model("smollm2", dtype=torch.bfloat16, device="cpu")
        tokenizer = load_tokenizer("smollm2", model)
        model.model.layers, model.config.num_hidden_layers = model.model.layers[:layers], layers
        model = widened(model) if wide else model
        model.save_pretrained(home)
        tokenizer.save_pretrained(home)
    return home


def widened(model: Any) -> Any:
    """The same function in 640 channels and 16 heads, 4 for keys: what is new has weights of zero.

    Norms divide by the mean over 640 channels instead of 576, so their weights and eps make up for that.
    """
    config = type(model.config).from_dict(model.config.to_dict())
    share = config.hidden_size / 640
    config.update(
        {
            "hidden_size": 640,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "rms_norm_eps": config.rms_norm_eps * share,
        }
    )
    wide = type(model)(config).to(model.dtype).eval()
    taken = [64 * head + i for head in (0, 1, 2, 4, 5, 6, 8, 9, 10) for i in range(64)]  # 3 of every 4 queries
    places = {"q_proj": (taken, 576), "o_proj": (576, taken), "k_proj": (192, 576), "v_proj": (192, 576)}
    places |= {"gate_proj": (1536, 576), "up_proj": (1536, 576), "down_proj": (576, 1536)}
    old = dict(model.named_parameters())
    with torch.no_grad():
        for name, new in wide.named_parameters():
            new.zero_()
            if new.ndim == 1:
                new[:576] = old[name] * share**0.5
                continue
            rows, columns = places.get(name.split(".")[-2], (len(new), 576))
            rows, columns = (torch.tensor(x if isinstance(x, list) else range(x)) for x in (rows, columns))
            new[rows[:, None], columns] = old[name]
    return wide


def compress(case: Case, folder: Path, *, base: Path) -> Path:
    """A folder with what vLLM shall serve: SmolLM2 rotated and rounded by a case, or itself."""
    if not case.settings and not case.rotations:
        return base
    steps = [SpinQuantModifier(rotations=list(case.rotations))] if case.rotations else []
    steps += [QuantizationModifier(ignore=["lm_head"], **case.settings)] if case.settings else []
    data = {"dataset": "coldpress/short", "num_calibration_samples": 16, "max_seq_length": 256, "pipeline": "basic"}
    needy = any(one.needs().data for step in steps for one in step.expand())
    arguments = {**(data if needy else {}), **(case.arguments or {})}
    oneshot(str(base), steps, precision="bfloat16", output_dir=str(folder), quiet=True, **arguments)
    return folder


def log_probabilities(model: Any, tokens: list[int]) -> torch.Tensor:
    """How likely a model finds every token but the first, [T - 1]."""
    ids = torch.tensor([tokens])
    with torch.no_grad():
        ours = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), -1)
    return ours.gather(1, ids[0, 1:, None])[:, 0]


def reference(folder: Path, tokens: list[int], case: Case) -> torch.Tensor:
    """What our reader says of a folder, [T - 1]."""
    return log_probabilities(_ours(folder, case), tokens)


def whole_reference(folder: Path, tokens: list[int], case: Case) -> dict[str, Any]:
    """The same, how far it moves with the output of every module changed in the last bit, and how prompts go on."""
    model = _ours(folder, case)
    ours, generator = log_probabilities(model, tokens), torch.Generator().manual_seed(0)

    def change(module: Any, args: Any, output: Any) -> Any:
        bits = torch.finfo(output.dtype).eps * torch.randn(output.shape, generator=generator)
        return output * (1 + bits.to(output.dtype))

    texts = [_continued(model, load_tokenizer(str(folder)), prompt) for prompt in PROMPTS]
    for module in model.modules():
        if not list(module.children()) and "Rotary" not in type(module).__name__:
            module.register_forward_hook(change)
    return {"said": ours, "noise": (log_probabilities(model, tokens) - ours).abs().mean().item(), "texts": texts}


def _ours(folder: Path, case: Case) -> Any:
    model = load_model(folder, dtype=torch.float32, device="cpu")
    if case.differs:
        case.differs[1](model)
    return model


def _continued(model: Any, tokenizer: Any, prompt: str) -> str:
    """Eight more tokens, the likeliest ones."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        longer = model.generate(ids, max_new_tokens=MORE, do_sample=False)
    text: str = tokenizer.decode(longer[0, ids.shape[1] :])
    return text


def request(folder: Path, tokens: list[int], *, dtype: str, emulate: bool = False) -> dict[str, Any]:
    """What vLLM is asked, see tests/vllm/serve.py."""
    asked = {"model": str(folder), "prompts": list(PROMPTS), "max_tokens": MORE, "tokens": tokens}
    return asked | {"dtype": dtype, "emulate": emulate}


def ask(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers of one process of vLLM."""
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder) / "answers.json"
        command = [str(PYTHON), str(ROOT / "tests/vllm/serve.py"), str(answers)]
        run = subprocess.run(
            command, input=json.dumps(requests), env=os.environ | ENVIRONMENT, capture_output=True, text=True
        )
        if run.returncode or not answers.exists():
            raise RuntimeError(f"vLLM failed:\n{run.stdout[-4000:]}\n{run.stderr[-4000:]}")
        return json.loads(answers.read_text(encoding="utf-8"))


def first_layers(names: list[str], tokens: list[int], folder: Path) -> dict[str, dict[str, Any]]:
    """The first layer of every case, served; refusals with and without emulation."""
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    plain, emulated = [], []
    for name in names:
        case, base = CASES[name], source(folder, wide=CASES[name].wide, layers=1)
        home = compress(case, folder / f"1-{len(plain)}", base=base)
        ours = reference(home, tokens, case)
        moved = (ours - reference(base, tokens, CASES["the original"])).abs().median().item()
        found[name] |= {"ours": ours, "moved": moved}
        plain.append((name, request(home, tokens, dtype=case.dtype)))
        if case.emulate:
            emulated.append((name, request(home, tokens, dtype=case.dtype, emulate=True)))
    answers = ask([asked for _, asked in plain + emulated])
    for (name, asked), answer in zip(plain + emulated, answers, strict=True):
        line = found[name]
        if "refused" in answer:
            line["refused_emulated" if asked["emulate"] else "refused"] = answer["refused"].strip()
        else:
            difference = (torch.tensor(answer["logprobs"]) - line["ours"]).abs()
            line |= {"first_layer": difference.median().item(), "first_layer_mean": difference.mean().item()}
            line["emulated"] = asked["emulate"]
    for line in found.values():
        del line["ours"]
    return found


def whole_models(found: dict[str, dict[str, Any]], tokens: list[int], folder: Path) -> None:
    """Add what the whole model says, for every case whose first layer was served."""
    served = [name for name, line in found.items() if "first_layer" in line]
    for start in range(0, len(served), BATCH):
        ours, requests = [], []
        for name in served[start : start + BATCH]:
            case = CASES[name]
            home = compress(case, folder / f"30-{start}-{len(ours)}", base=source(folder, wide=case.wide))
            ours.append(whole_reference(home, tokens, case))
            requests.append(request(home, tokens, dtype=case.dtype, emulate=found[name]["emulated"]))
        # Emulation stays once it is offered, so cases that need none come first.
        order = sorted(range(len(requests)), key=lambda i: requests[i]["emulate"])
        for place, answer in zip(order, ask([requests[i] for i in order]), strict=True):
            found[served[start + place]] |= _whole(answer, ours[place])


def _whole(answer: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    ours, theirs = reference["said"], torch.tensor(answer["logprobs"])
    difference = (theirs - ours).abs()
    return {
        "distance": difference.mean().item(),
        "largest": difference.max().item(),
        "mean_log_probability": {"ours": ours.mean().item(), "vLLM": theirs.mean().item()},
        "noise": reference["noise"],
        "expected": _expected(answer["texts"]),
        "expected_of_ours": _expected(reference["texts"]),
        "texts": answer["texts"],
        "seconds": answer["seconds"],
    }


def _expected(texts: list[str]) -> int:
    return sum(word in text for word, text in zip(PROMPTS.values(), texts, strict=True))


def facts() -> dict[str, str]:
    """With what it was measured."""
    listed = subprocess.run([str(PYTHON), "-m", "pip", "list", "--format=json"], capture_output=True, check=True)
    theirs = {line["name"]: line["version"] for line in json.loads(listed.stdout)}
    return {
        "measured": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "vllm-cpu": theirs["vllm-cpu"],
        "torch": version("torch"),
        "transformers": version("transformers"),
        "processor": platform.processor() or platform.machine(),
    }


def table(results: dict[str, Any]) -> str:
    """The outcome for a person: what is served, and why the rest is not."""
    lines = ["# What vLLM serves", "", "`python benchmarks/served.py --write`", ""]
    lines += [f"SmolLM2-135M, 512 tokens; {', '.join(f'{k} {v}' for k, v in results['facts'].items())}.", ""]
    lines += ["\n\n".join(__doc__.strip().split("\n\n")[2:])]
    lines += [
        "",
        "| scheme | kernel | computed in | first layer, median | moved | whole, mean | noise | prompts, of 3 (ours) |",
    ]
    lines += ["|---|---|---|--:|--:|--:|--:|--:|"]
    for name, line in results["cases"].items():
        if "first_layer" in line:
            notes = [line["emulated"] and "emulated", CASES[name].wide and "widened", (CASES[name].differs or [""])[0]]
            kernel = ", ".join(note for note in notes if note) or "as it is"
            numbers = [
                f"{line[key]:.1e}" if key in line else "" for key in ("first_layer", "moved", "distance", "noise")
            ]
            prompts = f"{line['expected']} ({line['expected_of_ours']})" if "expected" in line else ""
            cells = [name, kernel, CASES[name].dtype, *numbers, prompts]
            lines.append(f"| {' | '.join(cells)} |")
    missing = [name for name in CASES if name not in results["cases"]]
    if missing:
        lines += ["", f"Not measured yet: {'; '.join(missing)}."]
    lines += ["", "## Refused", ""]
    for name, line in results["cases"].items():
        for key, how in (("refused", "as it is"), ("refused_emulated", "with emulation offered")):
            if key in line and not (key == "refused" and line.get("refused_emulated") == line["refused"]):
                lines.append(f"- **{name}**, {how}: `{shortened(line[key])}`")
    return "\n".join(lines) + "\n"


def shortened(message: str, *, most: int = 300) -> str:
    """A message on one line, without what repeats the scheme."""
    text = " ".join(message.split()).replace("`", "'")
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0] + " ..."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="cases; all of them where none is named")
    parser.add_argument("--first-layers", action="store_true", help="leave out the whole models")
    parser.add_argument("--write", action="store_true", help="put the lines into results/served.{md,json}")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        tokens = held_out()
        found = first_layers(options.names or list(CASES), tokens, Path(folder))
        if not options.first_layers:
            whole_models(found, tokens, Path(folder))
    print(json.dumps(found, indent=1))
    if options.write:
        path = RESULTS.with_suffix(".json")
        kept = json.loads(path.read_text(encoding="utf-8"))["cases"] if options.names and path.exists() else {}
        cases = {name: line for name in CASES if (line := {**kept, **found}.get(name))}
        results = {"facts": facts(), "cases": cases}
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        RESULTS.with_suffix(".md").write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
