"""One rank of llm-compressor's GPTQ on the CPU: a child of ranks.py that runs in that library's environment.

python benchmarks/compare/peer_rank.py REQUEST.json        with RANK, WORLD_SIZE and the rest as torchrun sets them

Its own `init_dist` asks for a card; a process group of gloo is what it makes where it finds none.
"""

import json
import os
import resource
import sys
import time
from hashlib import sha256
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from torch import distributed
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rank = int(os.environ.get("RANK", "0"))
    if "WORLD_SIZE" in os.environ:
        distributed.init_process_group("gloo")
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.bfloat16, device_map="cpu")
    rows = request["rows"]
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    start = time.perf_counter()
    oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(request["model"]),
        recipe=[GPTQModifier(**request["gptq"])],
        dataset=data,
        num_calibration_samples=len(rows),
        max_seq_length=len(rows[0]),
        shuffle_calibration_samples=False,
    )
    seconds = time.perf_counter() - start
    digest = sha256()
    for _, weight in sorted(model.state_dict().items()):
        digest.update(weight.contiguous().view(torch.uint8).numpy().tobytes())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answer = {"seconds": seconds, "peak_bytes": peak, "sha256": digest.hexdigest()}
    Path(f"{request['answer']}-{rank}").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
