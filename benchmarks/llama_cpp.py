"""What llama.cpp makes of our files: as close as it comes to our model, and GPTQ beside llama.cpp's own quantizer.

    python benchmarks/llama_cpp.py types --write
    python benchmarks/llama_cpp.py peer --write
    python benchmarks/llama_cpp.py types Q4_0 Q8_0          some of them, printed; with --write these rows of the table

`types` rounds SmolLM2 to nearest in each type and opens the file with llama.cpp (the wheel xllamacpp):

    engine         KL from our model to what the engine computes, mean over prompts
    inputs         KL from our model to itself with inputs rounded as the engine rounds them on a CPU: 8 bits in blocks
                   of 32 (Q8_0), in blocks of 256 for K-quants (Q8_K), bfloat16 before weights in bfloat16
    quantization   KL from the original to our model, same prompts: what the type costs
    same_text      prompts of which 16 greedy tokens are those of our model
    margin         where texts part: by how many nats our model finds its token likelier than the engine's; the largest
    noise          error of the engine in the difference of the two likeliest tokens, root of the mean square over all
                   steps before texts part
    noise_inputs   the same of our model with rounded inputs

Our model is the folder of the file, read back with its codes and computed in float32.

`peer` writes two files of the same types and size for each scheme: one by GPTQ, the other by llama.cpp's own quantizer
(`ggml_quantize_chunk` of the same wheel) from the original weights, with the mean squares of the inputs of the same
calibration text as its importance matrix.  Both are decoded and judged by one evaluator on held-out text, and what
llama.cpp itself computes of them is judged on part of it, token by token (`engine_perplexity`, and `engine_kl` from the
original to it).
"""

import argparse
import copy
import ctypes
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import xllamacpp

from coldpress import load_model, load_tokenizer, oneshot
from coldpress.evaluation import divergence, perplexity
from coldpress.evaluation.windows import cut_windows
from coldpress_gguf.file import GgufFile

RESULTS = Path(__file__).parent / "results"
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4A16", "NVFP4A16", "Q4_K_M", "Q5_K_M")
PEERS = ("Q4_0", "Q4_K_M")
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "def fibonacci(n):\n    ",
    "Once upon a time there was a little girl who",
    "In 1969 the first human being",
    "The three primary colours are red, yellow and",
    "My favourite season of the year is",
    "To make bread you need flour, water,",
)


class Engine:
    """A file, opened by llama.cpp."""

    def __init__(self, path: Path) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = 512, 1, 0
        params.warmup, params.verbosity, params.cpuparams.n_threads = False, -1, 1
        self._server = xllamacpp.Server(params)

    def log_probabilities(self, tokens: list[int], vocabulary: int, *, go_on: bool = False) -> torch.Tensor:
        """Of the token after these, [V]; `go_on` keeps what was computed of the tokens before."""
        asked = {"prompt": tokens, "n_predict": 1, "temperature": 0, "n_probs": vocabulary, "cache_prompt": go_on}
        (found,) = self._server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
        out = torch.full((vocabulary,), -50.0)
        for one in found["top_logprobs"]:
            out[one["id"]] = one["logprob"]
        return out.log_softmax(0)

    def steps(self, tokens: list[int], count: int) -> list[tuple[int, dict[int, float]]]:
        """The likeliest token again and again, each with the log-probabilities of the likeliest ten."""
        request = {"prompt": tokens, "n_predict": count, "temperature": 0, "n_probs": 10, "cache_prompt": False}
        content = self._server.handle_completions(request)["choices"][0]["logprobs"]["content"]
        return [(step["id"], {one["id"]: one["logprob"] for one in step["top_logprobs"]}) for step in content]


def types(schemes: Sequence[str]) -> dict[str, Any]:
    """The first table."""
    tokenizer, original = load_tokenizer("smollm2"), load_model("smollm2", dtype=torch.float32)
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    rows = {}
    for name in schemes:
        with tempfile.TemporaryDirectory() as folder:
            file = export(Path(folder) / "out", load_model("smollm2"), "QuantizationModifier", name, tokenizer)
            model, engine = load_model(file.parent, dtype=torch.float32), Engine(file)
            rounded = with_rounded_inputs(model, file)
            theirs = [engine.log_probabilities(prompt, original.config.vocab_size) for prompt in prompts]
            ours, before, near = ([says(one, prompt) for prompt in prompts] for one in (model, original, rounded))
            rows[name] = {
                "engine": mean_kl(ours, theirs),
                "inputs": mean_kl(ours, near),
                "quantization": mean_kl(before, ours),
                **greedy([model, rounded], engine, prompts),
                "megabytes": file.stat().st_size / 1e6,
            }
            print(name, rows[name], flush=True)
            del engine
    return {"prompts": len(prompts), "rows": rows}


def greedy(models: Sequence[Any], engine: Engine, prompts: list[list[int]], count: int = 16) -> dict[str, float]:
    """How the engine goes on beside a model, and beside its noise; see above.

    Args:
        models: ours, and ours with rounded inputs.
    """
    same, margin, errors = 0, 0.0, list[tuple[float, float]]()
    for prompt in prompts:
        steps = engine.steps(prompt, count)
        ids = [token for token, _ in steps]
        with torch.no_grad():
            lines = [
                model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
                for model in models
            ]
        for (token, theirs), ours, rounded in zip(steps, *lines, strict=True):
            first, second = ours.topk(2).indices.tolist()
            gap = float(ours[first] - ours[second])
            if first in theirs and second in theirs:
                errors.append((theirs[first] - theirs[second] - gap, float(rounded[first] - rounded[second]) - gap))
            if token != first:
                margin = max(margin, float(ours[first] - ours[token]))
                break
        else:
            same += 1
    noise, noise_inputs = (sum(x * x for x in one) ** 0.5 / len(errors) ** 0.5 for one in zip(*errors, strict=True))
    return {"same_text": same, "margin": margin, "noise": noise, "noise_inputs": noise_inputs}


def with_rounded_inputs(model: Any, file: Path) -> Any:
    """A copy of the model whose linear layers have the inputs that llama.cpp makes of them on a CPU."""
    from gguf import GGMLQuantizationType

    from coldpress_gguf.writing import ORIGIN

    places, copied = GgufFile(file), copy.deepcopy(model)
    entries = json.loads(places.metadata[ORIGIN]).items()
    kinds = {
        entry["parts"][0].rpartition(".")[0]: GGMLQuantizationType(places._places[name].kind).name
        for name, entry in entries
    }
    for name, layer in copied.named_modules():
        if isinstance(layer, torch.nn.Linear):
            kind = kinds.get(name, "BF16")  # a tied head
            rounded = round_256 if kind.endswith("_K") else round_16 if kind == "BF16" else round_32
            layer.register_forward_pre_hook(lambda _, args, rounded=rounded: (rounded(args[0]),))
    return copied


def round_16(x: torch.Tensor) -> torch.Tensor:
    """As bfloat16."""
    return x.bfloat16().float()


def round_32(x: torch.Tensor) -> torch.Tensor:
    """As Q8_0: 127 steps to the largest of 32, whose size is kept in float16."""
    blocks = x.unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    return ((blocks / scale.clamp(min=1e-30)).round() * scale.half().float()).flatten(-2)


def round_256(x: torch.Tensor) -> torch.Tensor:
    """As Q8_K: 127 steps to the largest of 256, which is exact."""
    blocks = x.unflatten(-1, (-1, 256))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    return ((blocks / scale.clamp(min=1e-30)).round() * scale).flatten(-2)


def peer(schemes: Sequence[str], samples: int, length: int, tokens: int, engine_tokens: int) -> dict[str, Any]:
    """The second table."""
    tokenizer, original = load_tokenizer("smollm2"), load_model("smollm2")
    windows = cut_windows(tokenizer, None, window=128, max_tokens=engine_tokens)
    expected = [line_by_line(original, window) for window in windows]
    importance, rows = mean_squares(original, tokenizer, samples, length), {}
    settings = {"num_calibration_samples": samples, "max_seq_length": length, "dataset": "coldpress/short"}
    for name in schemes:
        with tempfile.TemporaryDirectory() as folder:
            model = copy.deepcopy(original)
            ours = export(Path(folder) / "out", model, "GPTQModifier", name, tokenizer, **settings)
            theirs = Path(folder) / "theirs.gguf"
            requantize(ours, theirs, original, importance)
            for who, file in (("coldpress GPTQ", ours), ("llama.cpp, importance matrix", theirs)):
                decoded = load_model(file)
                found = divergence(decoded, original, tokenizer, window=512, max_tokens=tokens)
                engine_loss, engine_kl = judged(Engine(file), windows, expected)
                rows[f"{name}, {who}"] = {
                    "bytes": file.stat().st_size,
                    "perplexity": perplexity(decoded, tokenizer, window=512, max_tokens=tokens).value,
                    "kl": found.kl,
                    "kl_standard_error": found.kl_standard_error,
                    "top1": found.top1_agreement,
                    "engine_perplexity": math.exp(engine_loss),
                    "engine_kl": engine_kl,
                }
                print(name, who, rows[f"{name}, {who}"], flush=True)
    return {"samples": samples, "length": length, "tokens": tokens, "engine_tokens": engine_tokens, "rows": rows}


def line_by_line(model: Any, window: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the token after each of a window, [S, V]."""
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=window[None]).logits[0].float().log_softmax(-1)
    return found


def judged(engine: Engine, windows: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Mean loss of the engine on windows, [S] each, and KL from log-probabilities, [S, V] each, to the engine's."""
    loss, kl, count = 0.0, 0.0, 0
    for window, lines in zip(windows, expected, strict=True):
        tokens = window.tolist()
        for place in range(1, len(tokens)):
            says_ = engine.log_probabilities(tokens[:place], lines.shape[-1], go_on=True)
            loss -= float(says_[tokens[place]])
            kl += float((lines[place - 1].exp() * (lines[place - 1] - says_)).sum())
            count += 1
    return loss / count, kl / count


def export(folder: Path, model: Any, modifier: str, scheme: str, tokenizer: Any, **settings: Any) -> Path:
    """A file of the model, which is compressed."""
    recipe = f"{modifier}: {{scheme: {scheme}, ignore: [lm_head]}}\n"
    oneshot(model, recipe, output_dir=folder, format="gguf", tokenizer=tokenizer, quiet=True, **settings)
    return folder / "model.gguf"


def mean_squares(model: Any, tokenizer: Any, samples: int, length: int) -> dict[str, torch.Tensor]:
    """Of the inputs of each linear layer over the calibration text, [I]: what llama.cpp calls an importance matrix."""
    from coldpress.arguments import DatasetArguments
    from coldpress.calibration.dataset import load_batches

    arguments = DatasetArguments(dataset="coldpress/short", num_calibration_samples=samples, max_seq_length=length)
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: Any) -> None:
            x = inputs[0].float().flatten(0, -2)
            sums[name] = sums.get(name, 0) + x.square().sum(0)
            counts[name] = counts.get(name, 0) + len(x)

        return hook

    layers = [(name, one) for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)]
    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers]
    with torch.no_grad():
        for batch in load_batches(arguments, tokenizer, 0):
            model(**batch)
    for handle in handles:
        handle.remove()
    return {name: sums[name] / counts[name] for name in sums}


def requantize(source: Path, target: Path, original: Any, importance: dict[str, torch.Tensor]) -> None:
    """The same file with each block as llama.cpp's quantizer makes it of the original weights."""
    from coldpress_gguf.writing import ORIGIN, side_by_side

    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    quantize = library.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    file, content, weights = GgufFile(source), bytearray(source.read_bytes()), original.state_dict()
    for name, origin in json.loads(file.metadata[ORIGIN]).items():
        layer = origin["parts"][0].removesuffix(".blocks")
        if layer == origin["parts"][0]:
            continue
        place, weight = file._places[name], weights[f"{layer}.weight"].float()
        weight = (side_by_side(weight, origin["heads"]) if origin["heads"] else weight).contiguous()
        costs, made = importance[layer].contiguous(), bytearray(place.end - place.begin)
        out = (ctypes.c_char * len(made)).from_buffer(made)
        size = quantize(place.kind, weight.data_ptr(), ctypes.addressof(out), 0, *weight.shape, costs.data_ptr())
        assert size == len(made), (name, size, len(made))
        content[place.begin : place.end] = made
    target.write_bytes(content)


def says(model: Any, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities of the token after these, [V]."""
    return line_by_line(model, torch.tensor(tokens))[-1]


def mean_kl(reference: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """KL(reference || other), mean over prompts."""
    pairs = zip(reference, other, strict=True)
    return sum(float((p.exp() * (p - q)).sum()) for p, q in pairs) / len(reference)


def table(found: dict[str, Any]) -> str:
    """The rows as Markdown."""
    names = list(next(iter(found["rows"].values())))
    lines = [f"| | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    lines += [
        f"| {row} | {' | '.join(f'{values[name]:.5g}' for name in names)} |" for row, values in found["rows"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["types", "peer"])
    parser.add_argument("schemes", nargs="*", help="some of the schemes")
    parser.add_argument("--write", action="store_true", help="store the result in results/")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=8192, help="held-out tokens that judge")
    parser.add_argument("--engine-tokens", type=int, default=256, help="of these, those that llama.cpp reads itself")
    arguments = parser.parse_args()
    if arguments.what == "types":
        torch.set_num_threads(1)
        found = types(arguments.schemes or TYPES)
    else:
        sizes = arguments.samples, arguments.length, arguments.tokens, arguments.engine_tokens
        found = peer(arguments.schemes or PEERS, *sizes)
    stamp = {
        "date": str(date.today()),
        "xllamacpp": version("xllamacpp"),
        "gguf": version("gguf"),
        "torch": torch.__version__,
    }
    print(table(found))
    if arguments.write:
        name = f"llama_cpp-{arguments.what}"
        path = RESULTS / f"{name}.json"
        if arguments.schemes and path.exists():
            found["rows"] = {**json.loads(path.read_text())["rows"], **found["rows"]}
        (RESULTS / f"{name}.json").write_text(json.dumps({**stamp, **found}, indent=2) + "\n")
        command = f"python benchmarks/llama_cpp.py {' '.join(sys.argv[1:])}"
        facts = ", ".join(f"{key} {value}" for key, value in {**stamp, **found}.items() if key != "rows")
        (RESULTS / f"{name}.md").write_text(
            f"# SmolLM2 in llama.cpp: {arguments.what}\n\n`{command}`\n\n{facts}\n\n{table(found)}\n"
        )


if __name__ == "__main__":
    main()
