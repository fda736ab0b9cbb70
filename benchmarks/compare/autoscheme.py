"""AutoRound's AutoScheme: which scheme it gives each linear layer of a model.  Runs in the peer's environment.

python autoscheme.py REQUEST.json        a request has model, text, samples, length, bits, options, answer
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from auto_round.auto_scheme.gen_auto_scheme import AutoScheme, GenScheme
from auto_round.schemes import QuantizationScheme
from transformers import AutoModelForCausalLM, AutoTokenizer

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # engines make one layer of each


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    options = [one if isinstance(one, str) else QuantizationScheme.from_dict(one) for one in request["options"]]
    found: dict[str, Any] = {}
    for bits in request["bits"]:
        model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.bfloat16)
        names = [name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear) and name != "lm_head"]
        asked = AutoScheme(
            avg_bits=bits,
            options=list(options),
            shared_layers=FUSED,
            nsamples=request["samples"],
            seqlen=request["length"],
            batch_size=1,
        )
        start = time.process_time()
        chosen = GenScheme(
            asked, model, names, {}, dataset=request["text"], device_map="cpu", tokenizer=tokenizer
        ).get_layer_config()
        found[str(bits)] = {
            "cpu_seconds": time.process_time() - start,
            "layers": {name: {key: plain(value) for key, value in dict(one).items()} for name, one in chosen.items()},
        }
    Path(request["answer"]).write_text(json.dumps(found, indent=1), encoding="utf-8")


def plain(value: Any) -> Any:
    """A setting as JSON has it."""
    return value if isinstance(value, str | int | float | bool | None) else str(value)


if __name__ == "__main__":
    main()
