"""Weights in 4 bits, one scale for 64 columns; then the result is loaded again: `python examples/w4a16.py [MODEL]`."""

import sys

from coldpress import load_model, load_tokenizer, oneshot
from coldpress.modifiers import QuantizationModifier

MODEL = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
output = MODEL.rstrip("/").split("/")[-1] + "-W4A16"

recipe = QuantizationModifier(scheme="W4A16", group_size=64, ignore=["lm_head"])
oneshot(model=MODEL, recipe=recipe, output_dir=output)

model = load_model(output)
tokenizer = load_tokenizer(output, model)
prompt = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=10, do_sample=False)[0]))
