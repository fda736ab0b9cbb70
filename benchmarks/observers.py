"""What observers and number formats cost on a real model: output error, perplexity, KL to the original.

    python benchmarks/observers.py --write                       # every group, about 30 minutes
    python benchmarks/observers.py int4 float8-inputs --write    # these

SmolLM2-135M in bfloat16, rounded to nearest; where data are needed, 32 samples of 512 tokens of coldpress/short.
The output error of a linear layer is |y - y'| / |y|, with inputs of the original on held-out text, rounded where the
scheme rounds them; the mean over all layers.  Perplexity and KL to the original are those of the first windows of the
held-out text of coldpress/short.  Nothing was chosen by these numbers: every observer has its default settings.
"""

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from coldpress import load_model, load_tokenizer, oneshot
from coldpress.attachment import attachments_on
from coldpress.calibration import short
from coldpress_quantization import QuantizationModifier

RESULTS = Path(__file__).parent / "results/observers"
WINDOWS, LENGTH = 16, 512
Settings = dict[str, Any]


def _weights(scheme: str, *observers: str, **more: Any) -> list[tuple[str, str, Settings]]:
    return [(scheme, name, {"scheme": scheme, "weight_observer": name, **more}) for name in observers]


def _inputs(scheme: str, settings: Settings) -> list[tuple[str, str, Settings]]:
    names = ("minmax", "static_minmax", "mse", "percentile", "kl")
    return [(scheme, name, {**settings, "input_observer": name}) for name in names]


def _attention(label: str, args: Settings, *, queries: bool = False) -> tuple[str, str, Settings]:
    group = {"targets": ["LlamaAttention"], "input_activations": args}
    return (label, "", {"config_groups": {"attention": group}} if queries else {"kv_cache_scheme": args})


_INT8 = {
    "targets": ["Linear"],
    "weights": {"num_bits": 8, "strategy": "channel"},
    "input_activations": {"num_bits": 8, "strategy": "tensor"},
}
_FLOAT, _INT = {"num_bits": 8, "type": "float"}, {"num_bits": 8, "type": "int"}
_TENSOR, _HEAD = (
    {"strategy": "tensor", "observer": "static_minmax"},
    {"strategy": "attn_head", "observer": "static_minmax"},
)
_ALL = ("memoryless_minmax", "memoryless_mse", "imatrix_mse")
_PLAIN = ("W8A8", "FP8_DYNAMIC", "MXFP8A16", "MXFP8", "MXFP6A16", "MXFP6A8", "MXFP4A16", "MXFP4", "NVFP4A16", "NVFP4")

GROUPS: dict[str, list[tuple[str, str, Settings]]] = {
    "int4": _weights("W4A16", *_ALL, group_size=64),
    "int3": _weights("W3A16", *_ALL, group_size=64),
    "nvfp4": _weights("NVFP4A16", *_ALL, "four_over_six", "nvfp4_expanded_mse"),
    "mxfp4": _weights("MXFP4A16", *_ALL, "rceil"),
    "mx": _weights("MXFP6A16", "memoryless_minmax", "rceil") + _weights("MXFP8A16", "memoryless_minmax", "rceil"),
    "float8-inputs": _inputs("FP8", {"scheme": "FP8"}),
    "int8-inputs": _inputs("int8, static int8 inputs", {"config_groups": {"all": _INT8}}),
    "formats": [(name, "", {"scheme": name}) for name in _PLAIN],
    "attention": [
        _attention("KV cache, float8, one scale", _FLOAT | _TENSOR),
        _attention("KV cache, float8, a scale a head", _FLOAT | _HEAD),
        _attention("KV cache, int8, one scale", _INT | _TENSOR),
        _attention("KV cache, int8, a scale a head", _INT | _HEAD),
        _attention("KV cache and queries, float8, one scale", _FLOAT | _TENSOR, queries=True),
        _attention("KV cache and queries, float8, a scale a head", _FLOAT | _HEAD, queries=True),
        _attention("KV cache and queries, int8, a scale a head", _INT | _HEAD, queries=True),
    ],
}


class Judge:
    """The original: what it says of the windows, and what its layers are called with in the first one.

    Attributes:
        windows: token ids, [W, S].
        original: log-probabilities of the windows, [S - 1, vocabulary] bfloat16 each.
        inputs: layer name to its inputs, [T, I].
        weights: layer name to its weight, [O, I].
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        ids = tokenizer("\n\n".join(row["text"] for row in short.load("held_out")))["input_ids"]
        self.windows = torch.tensor(ids[: WINDOWS * LENGTH]).reshape(WINDOWS, LENGTH)
        self.inputs: dict[str, torch.Tensor] = {}
        layers = {name: layer for name, layer in _layers(model)}
        hooks = [layer.register_forward_pre_hook(self._watch(name)) for name, layer in layers.items()]
        self.original = [log_p.bfloat16() for log_p in self.log_p(model)]
        for hook in hooks:
            hook.remove()
        self.weights = {name: layer.weight.detach().clone() for name, layer in layers.items()}

    def _watch(self, name: str) -> Callable[[Any, Any], None]:
        def keep(module: Any, args: Any) -> None:
            self.inputs.setdefault(name, args[0][0, ::4].clone())

        return keep

    def log_p(self, model: Any) -> Iterator[torch.Tensor]:
        """Log-probabilities of one window after the other, [S - 1, vocabulary] float32."""
        for window in self.windows:
            with torch.no_grad():
                yield model(input_ids=window[None]).logits[0, :-1].float().log_softmax(-1)

    def costs(self, model: Any) -> dict[str, float]:
        """Perplexity and mean KL to the original."""
        surprise = distance = 0.0
        for window, log_p, wanted in zip(self.windows, self.log_p(model), self.original, strict=True):
            surprise -= log_p.gather(1, window[1:, None]).double().sum().item()
            wanted = wanted.float()
            distance += (wanted.exp() * (wanted - log_p)).double().sum().item()
        count = WINDOWS * (LENGTH - 1)
        return {"perplexity": math.exp(surprise / count), "kl": distance / count}

    def output_error(self, model: Any) -> float:
        """Mean of |y - y'| / |y| over linear layers."""
        errors = []
        for name, layer in _layers(model):
            x = self.inputs[name]
            rounded = x
            for attachment in attachments_on(layer):
                rounded = attachment.inputs(layer, rounded)
            y = x.float() @ self.weights[name].float().T
            errors.append(((y - rounded.float() @ layer.weight.detach().float().T).norm() / y.norm()).item())
        return sum(errors) / len(errors)


def _layers(model: Any) -> list[tuple[str, Any]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]


def fresh() -> Any:
    return load_model("smollm2", dtype=torch.bfloat16, device="cpu")


def measure(groups: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The lines of every group; the original is a group of its own."""
    tokenizer = load_tokenizer("smollm2")
    judge = Judge(fresh(), tokenizer)
    found = {"original": [{"scheme": "the original", "observer": "", **judge.costs(fresh())}]}
    for group in groups:
        found[group] = []
        for scheme, observer, settings in GROUPS[group]:
            modifier, model = QuantizationModifier(ignore=["lm_head"], **settings), fresh()
            data = {"dataset": "coldpress/short", "num_calibration_samples": 32, "max_seq_length": 512}
            oneshot(
                model,
                modifier,
                tokenizer=tokenizer,
                quiet=True,
                **(data if any(one.needs().data for one in modifier.expand()) else {}),
            )
            line = {"scheme": scheme, "observer": observer}
            found[group].append(line | {"output_error": judge.output_error(model)} | judge.costs(model))
            print(json.dumps(found[group][-1]), flush=True)
    return found


def table(results: dict[str, Any]) -> str:
    """The outcome for a person."""
    lines = ["# Observers and number formats", "", "`python benchmarks/observers.py --write`", ""]
    lines += __doc__.split("\n\n")[2].splitlines()
    lines += [f"{WINDOWS} windows of {LENGTH} tokens; torch {torch.__version__}, {os.cpu_count()} cores.", ""]
    lines += ["| scheme | observer | output error | perplexity | KL |", "|---|---|--:|--:|--:|"]
    for group in ("original", *GROUPS):
        for line in results["groups"].get(group, []):
            error = f"{line['output_error']:.1%}" if "output_error" in line else ""
            observer = f"`{line['observer']}`" if line["observer"] else ""
            cells = (line["scheme"], observer, error, f"{line['perplexity']:.2f}", f"{line['kl']:.4f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", choices=[[], *GROUPS], help="all of them where none is named")
    parser.add_argument("--write", action="store_true", help="put the lines into results/observers.{md,json}")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    found = measure(options.groups or list(GROUPS))
    if options.write:
        path = RESULTS.with_suffix(".json")
        kept = json.loads(path.read_text(encoding="utf-8"))["groups"] if path.exists() else {}
        results = {"measured": datetime.now(timezone.utc).strftime("%Y-%m-%d"), "groups": {**kept, **found}}
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        RESULTS.with_suffix(".md").write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
