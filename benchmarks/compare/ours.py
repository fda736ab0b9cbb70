"""One compression by coldpress, measured: a child of compare.py.

python benchmarks/compare/ours.py REQUEST.json
"""

import json
import time

STARTED = time.perf_counter()

import torch  # noqa: E402
import transformers  # noqa: E402, F401

from coldpress import load_model, load_tokenizer, oneshot  # noqa: E402
from compare.run import measure  # noqa: E402


def load(request: dict) -> tuple:
    model = load_model(request["model"], dtype=torch.bfloat16, device="cpu")
    with open(request["samples"], encoding="utf-8") as file:
        rows = [{"input_ids": ids} for ids in json.load(file)]
    return model, load_tokenizer(request["model"], model), rows


def compress(request: dict, loaded: tuple) -> object:
    model, tokenizer, rows = loaded
    recipe = json.dumps({"modifiers": [{name: settings} for name, settings in request["modifiers"]]})  # JSON is YAML
    return oneshot(
        model,
        recipe,
        tokenizer=tokenizer,
        dataset=rows,
        num_calibration_samples=len(rows),
        max_seq_length=len(rows[0]["input_ids"]),
        shuffle_calibration_samples=False,
        seed=request["seed"],
        quiet=True,
    )


def dense(model: object, name: str) -> torch.Tensor:
    """What the parameter is: `oneshot` leaves the weights that the codes stand for."""
    return model.get_parameter(name)


if __name__ == "__main__":
    measure(STARTED, load, compress, dense)
