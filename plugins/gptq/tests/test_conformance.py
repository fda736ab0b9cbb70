"""What `GPTQModifier` promises."""

from coldpress.testing import conformance
from coldpress_gptq.cross import Cross

test_weights_only = conformance("GPTQModifier", settings={"scheme": "W4A16", "ignore": ["lm_head"]})

test_asymmetric = conformance(
    "GPTQModifier",
    settings={"scheme": "W4A16_ASYM", "group_size": 32, "actorder": None, "ignore": ["lm_head"]},
)

test_static_inputs = conformance(
    "GPTQModifier", settings={"scheme": "FP8", "input_observer": "static_minmax", "ignore": ["lm_head"]}
)

test_cross = conformance(Cross)
