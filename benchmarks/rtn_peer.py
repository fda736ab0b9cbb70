"""Round one checkpoint to nearest with llm-compressor: runs in that library's virtual environment, never in ours.

python benchmarks/rtn_peer.py MODEL_FOLDER RECIPE_FILE OUTPUT_FOLDER
"""

import sys

from llmcompressor import oneshot
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    source, recipe, output = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", device_map="cpu")
    tokenizer = AutoTokenizer.from_pretrained(source)
    oneshot(model=model, tokenizer=tokenizer, recipe=recipe, pipeline="datafree", output_dir=output)


if __name__ == "__main__":
    main()
