"""FP8 weights and activations, no data needed: `python examples/fp8_dynamic.py [MODEL]`."""

import sys

from coldpress import load_model, oneshot
from coldpress.modifiers import QuantizationModifier

MODEL = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
model = load_model(MODEL)

recipe = QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"])

output = MODEL.rstrip("/").split("/")[-1] + "-FP8-Dynamic"
oneshot(model=model, recipe=recipe, output_dir=output)
print(f"vllm serve {output}")
