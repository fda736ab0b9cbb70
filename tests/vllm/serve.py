"""Continue a prompt greedily with vLLM: a JSON request on stdin, the JSON answer in the file that argv[1] names.

It runs in the virtual environment of vLLM, never in ours, so it imports nothing of coldpress.
The answer goes to a file because vLLM writes its own log to stdout.

    {"model": folder, "prompt": text, "max_tokens": 12}  ->  {"text": continuation, "seconds": to load and to generate}
"""

import json
import sys
import time
from pathlib import Path

from vllm import LLM, SamplingParams


def main() -> None:
    request = json.load(sys.stdin)
    started = time.monotonic()
    served = LLM(
        model=request["model"],
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=1,
    )
    loaded = time.monotonic()
    sampling = SamplingParams(temperature=0.0, max_tokens=request["max_tokens"])
    completion = served.generate([request["prompt"]], sampling, use_tqdm=False)[0].outputs[0]
    seconds = {"load": loaded - started, "generate": time.monotonic() - loaded}
    Path(sys.argv[1]).write_text(json.dumps({"text": completion.text, "seconds": seconds}), encoding="utf-8")


if __name__ == "__main__":
    main()
