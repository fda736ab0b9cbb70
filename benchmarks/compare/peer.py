"""One compression by llm-compressor, measured: a child of compare.py that runs in that library's environment.

python benchmarks/compare/peer.py REQUEST.json
"""

import json
import time
from importlib import import_module

STARTED = time.perf_counter()

import torch  # noqa: E402
from compressed_tensors.quantization.lifecycle.forward import forward_quantize  # noqa: E402
from datasets import Dataset  # noqa: E402
from llmcompressor import oneshot  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from compare.run import measure  # noqa: E402

HOMES = {
    "AWQModifier": "transform.awq",
    "AutoRoundModifier": "autoround",
    "GPTQModifier": "gptq",
    "QuantizationModifier": "quantization",
    "SmoothQuantModifier": "transform.smoothquant",
    "SparseGPTModifier": "pruning.sparsegpt",
    "SpinQuantModifier": "transform.spinquant",
}
CLASSES = {name: getattr(import_module(f"llmcompressor.modifiers.{home}"), name) for name, home in HOMES.items()}

if not torch.cuda.is_available():
    # Its AWQModifier pins the memory of what it caches whether there is a GPU or not, and torch refuses without one.
    # Pinning is for copies to a GPU, so here it is nothing; everything else of the library is as it was installed.
    torch.Tensor.pin_memory = lambda self, *_, **__: self


def load(request: dict) -> tuple:
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.bfloat16, device_map="cpu")
    with open(request["samples"], encoding="utf-8") as file:
        samples = json.load(file)
    rows = Dataset.from_dict({"input_ids": samples, "attention_mask": [[1] * len(ids) for ids in samples]})
    return model, AutoTokenizer.from_pretrained(request["model"]), rows


def compress(request: dict, loaded: tuple) -> object:
    model, tokenizer, rows = loaded
    return oneshot(
        model=model,
        tokenizer=tokenizer,
        recipe=[CLASSES[name](**settings) for name, settings in request["modifiers"]],
        dataset=rows,
        num_calibration_samples=len(rows),
        max_seq_length=len(rows[0]["input_ids"]),
        shuffle_calibration_samples=False,
        pipeline=request["peer_pipeline"],
    )


def dense(model: object, name: str) -> torch.Tensor:
    """What the layer's forward would compute with: it rounds the parameter to the grid of its scales each time."""
    module = model.get_submodule(name.rpartition(".")[0])
    weight, found = model.get_parameter(name), getattr(module, "quantization_scheme", None)
    if not name.endswith(".weight") or found is None or found.weights is None:
        return weight
    return forward_quantize(module, weight.data, "weight", found.weights)


if __name__ == "__main__":
    measure(STARTED, load, compress, dense)
