"""A script written for llm-compressor, with two import lines changed: `python examples/from_llmcompressor.py MODEL`."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

from coldpress import oneshot
from coldpress.modifiers import QuantizationModifier

MODEL_ID = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(MODEL_ID, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)

recipe = QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"])
oneshot(model=model, recipe=recipe)

input_ids = tokenizer("Hello my name is", return_tensors="pt").input_ids.to(model.device)
print(tokenizer.decode(model.generate(input_ids, max_new_tokens=20)[0]))

SAVE_DIR = MODEL_ID.rstrip("/").split("/")[-1] + "-FP8-Dynamic"
model.save_pretrained(SAVE_DIR)
tokenizer.save_pretrained(SAVE_DIR)
