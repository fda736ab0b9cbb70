"""What compare.py asks of coldpress before and after the measured runs: one evaluator for the weights of both sides.

python benchmarks/compare/evaluate.py {prepare,evaluate} REQUEST.json
"""

import json
import sys
from pathlib import Path
from typing import ClassVar

import torch
from attrs import frozen
from datasets import Dataset
from remembered import Remembered
from safetensors.torch import load_file
from torch import Tensor, nn

from coldpress import QuantizationArgs, Scheme, divergence, load_model, load_tokenizer, perplexity
from coldpress.arguments import DatasetArguments
from coldpress.attachment import attach
from coldpress.bases.quantized_inputs import quantize_inputs
from coldpress.calibration.dataset import load_batches
from coldpress.models.tie import untie_embeddings
from coldpress.numerics import dynamic_qparams, fake_quantize
from coldpress.plugin import Attachment, AttentionStates, Quantized, attention_modules

PASSAGE = 512  # tokens that every passage of coldpress/short has
MOST = 16384  # tokens of another text that are judged on


def prepare(request: dict) -> dict:
    """Write the model as a bfloat16 folder, if it is not one already, and the samples as token ids."""
    folder, count, length = Path(request["model"]), request["samples"], request["length"]
    if not (folder / "config.json").exists():
        folder = Path(request["source"])
        if not (folder / "config.json").exists():
            model = load_model(request["model"], dtype=torch.bfloat16, device="cpu")
            load_tokenizer(request["model"], model).save_pretrained(folder)
            model.save_pretrained(folder)
    arguments = DatasetArguments(
        dataset=Dataset.from_dict({"text": halves(request["text"])[0]}) if request["text"] else "coldpress/short",
        num_calibration_samples=count,
        max_seq_length=length,
        concatenate_data=bool(request["text"]) or length > PASSAGE,
    )
    batches = load_batches(arguments, load_tokenizer(str(folder)), request["seed"])
    rows = [row for batch in batches for row in batch["input_ids"].tolist()]
    if len(rows) < count or any(len(row) != length for row in rows):
        longest = max(map(len, rows))
        source = request["text"] or "coldpress/short"
        raise SystemExit(f"{source} gives {len(rows)} samples of up to {longest} tokens: ask for fewer or shorter")
    Path(request["rows"]).write_text(json.dumps(rows), encoding="utf-8")
    return {"folder": str(folder), "tokens": sum(map(len, rows))}


def halves(text: str) -> tuple[list[str], list[str]]:
    """The passages of a file, a line each, to calibrate and to judge on."""
    lines = Path(text).read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)["text"] for line in lines]
    return found[: len(found) // 2], found[len(found) // 2 :]


def evaluate(request: dict) -> dict:
    """Perplexity of the original, and of each file of weights that with mean KL and agreement; held-out text."""
    torch.set_num_threads(request["threads"])
    original = Remembered(load_model(request["folder"], dtype=torch.bfloat16, device="cpu"))
    tokenizer = load_tokenizer(request["folder"], original.model)
    text = {"text": halves(request["text"])[1], "max_tokens": MOST} if request["text"] else {}
    found = {"original": {"perplexity": perplexity(original, tokenizer, **text).value}}
    return found | {path: judged(path, request, original, tokenizer, text) for path in request["weights"]}


def judged(path: str, request: dict, original: Remembered, tokenizer: object, text: dict) -> dict:
    """The numbers of one file of weights."""
    model = load_model(request["folder"], dtype=torch.bfloat16, device="cpu")
    weights = load_file(path)
    if request["rotated"]:
        untie_embeddings(model)
    overwrite(model, weights)
    if not request["rotated"]:
        check_head(model, original.model)
    if request["inputs"] is not None:
        simulate(model, request["inputs"])
    if request["cache"] is not None:
        simulate_cache(model, request["cache"])
    asked = Remembered(model)
    cost, distance = perplexity(asked, tokenizer, **text), divergence(asked, original, tokenizer, **text)
    return {
        "perplexity": cost.value,
        "perplexity_standard_error": cost.standard_error,
        "kl": distance.kl,
        "kl_standard_error": distance.kl_standard_error,
        "top1_agreement": distance.top1_agreement,
        "zeros": zeros(model),
        "two_of_four": two_of_four(model),
        "tokens": cost.tokens,
    }


def overwrite(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put weights into the model; every parameter must be among them, once if it is tied."""
    wanted = {name for name, _ in model.named_parameters()}
    if missing := wanted - weights.keys():
        raise SystemExit(f"these weights were not stored: {sorted(missing)}")
    model.load_state_dict(weights, strict=False)


def linears(model: nn.Module) -> list[nn.Linear]:
    """The layers that every job compresses: all but the head."""
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m is not model.get_output_embeddings()]


def check_head(model: nn.Module, original: nn.Module) -> None:
    """Neither side may touch the head or the embeddings, which no job targets."""
    for part in ("get_input_embeddings", "get_output_embeddings"):
        if not torch.equal(getattr(model, part)().weight, getattr(original, part)().weight):
            raise SystemExit(f"a compression has changed what {part} returns, which no job targets")


def simulate(model: nn.Module, inputs: dict) -> None:
    """Round the inputs of every compressed layer, in the same way for both sides."""
    for layer in linears(model):
        scheme = Scheme(targets=["Linear"], input_activations=QuantizationArgs(**inputs))
        quantize_inputs(layer, Quantized(scheme))


@frozen(kw_only=True)
class RoundedCache(Attachment):
    """Keys and values rounded for each token and head as attention reads them."""

    kind: ClassVar[str] = "rounded_cache"

    args: QuantizationArgs

    def attention(self, module: nn.Module, states: AttentionStates) -> AttentionStates:
        """Round keys and values."""
        return AttentionStates(
            keys=self.rounded(states.keys), values=self.rounded(states.values), queries=states.queries
        )

    def rounded(self, x: Tensor) -> Tensor:
        """One scale for the channels of a head, [..., D]."""
        flat = x.reshape(-1, x.shape[-1])
        return fake_quantize(flat, *dynamic_qparams(flat, self.args), self.args).reshape(x.shape)


def simulate_cache(model: nn.Module, cache: dict) -> None:
    """Round keys and values of every attention, in the same way for both sides."""
    for _, module in attention_modules(dict(model.named_modules())):
        attach(module, RoundedCache(args=QuantizationArgs(**cache)))


def zeros(model: nn.Module) -> float:
    """Share of the compressed layers' weights that are zero."""
    return sum(int((m.weight == 0).sum()) for m in linears(model)) / sum(m.weight.numel() for m in linears(model))


def two_of_four(model: nn.Module) -> float:
    """Share of fours of neighbours in a row with at least two zeros."""
    fours = [(m.weight == 0).unflatten(1, (-1, 4)).sum(-1) for m in linears(model)]  # [O, I / 4] each
    return sum(int((part >= 2).sum()) for part in fours) / sum(part.numel() for part in fours)


if __name__ == "__main__":
    _, verb, path = sys.argv
    asked = json.loads(Path(path).read_text(encoding="utf-8"))
    answer = {"prepare": prepare, "evaluate": evaluate}[verb](asked)
    Path(asked["answer"]).write_text(json.dumps(answer), encoding="utf-8")
