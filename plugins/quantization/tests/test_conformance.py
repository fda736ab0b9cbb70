"""What `QuantizationModifier` promises."""

from coldpress.testing import conformance

test_weights_only = conformance("QuantizationModifier", settings={"scheme": "W4A16", "ignore": ["lm_head"]})

test_dynamic_inputs = conformance("QuantizationModifier", settings={"scheme": "W8A8", "ignore": ["lm_head"]})

test_static_inputs = conformance(
    "QuantizationModifier", settings={"scheme": "FP8", "input_observer": "static_minmax", "ignore": ["lm_head"]}
)

test_moving_average = conformance(
    "QuantizationModifier",
    settings={"scheme": "FP8", "input_observer": "minmax", "ignore": ["lm_head"]},
    expected_failures={"batching_does_not_matter": "the observer minmax is a moving average over batches"},
)

test_frozen_ranges = conformance("QATModifier")

test_recomputed_ranges = conformance("QATModifier", settings={"ranges": "recomputed"})

test_learned_ranges = conformance("QATModifier", settings={"ranges": "learned"})
