"""GPTQ by llm-compressor on a card: a child of gpu.py that runs in that library's environment.

python benchmarks/card/peer.py '{"model": FOLDER, "warm": FOLDER, "samples": 128, "length": 2048, ...}'
"""

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

from card.gauge import answer, gauged, request, token_ids


def compress(folder: str, samples: int, length: int, asked: dict) -> dict[str, float]:
    """The model is loaded on the CPU, as in its examples; what waits between blocks stays on the card."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids = token_ids(model.config.vocab_size, samples, length)
    rows = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * length] * samples})
    settings = {
        "model": model,
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "recipe": GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"]),
        "dataset": rows,
        "num_calibration_samples": samples,
        "max_seq_length": length,
        "shuffle_calibration_samples": False,
        "batch_size": asked["batch"],
        "sequential_offload_device": asked["device"],
    }
    return gauged(lambda: oneshot(**settings), asked["device"])


if __name__ == "__main__":
    asked = request()
    compress(asked["warm"], 4, 64, asked)
    answer(compress(asked["model"], asked["samples"], asked["length"], asked))
