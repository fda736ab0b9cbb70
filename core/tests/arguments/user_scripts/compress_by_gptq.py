"""A model by GPTQ, in one call."""

from pathlib import Path

import coldpress
from coldpress.modifiers import GPTQModifier

model = coldpress.oneshot(
    "smollm2",
    GPTQModifier(scheme="W4A16", ignore=["lm_head"]),
    dataset=[{"text": "one"}],
    num_calibration_samples=32,
    splits={"calibration": "train[:5%]"},
    sequential_targets=["LlamaDecoderLayer"],
    output_dir=Path("out"),
    format=["compressed-tensors", "gguf"],
)
coldpress.oneshot("smollm2", "recipe.yaml", num_calibration_sample=32)  # wrong
coldpress.oneshot("smollm2", "recipe.yaml", max_seq_length="512")  # wrong
coldpress.oneshot("smollm2", "recipe.yaml", output_dir=3)  # wrong
coldpress.oneshot("smollm2", "recipe.yaml", overwrite="yes")  # wrong
