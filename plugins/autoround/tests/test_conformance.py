"""What `AutoRoundModifier` promises."""

from coldpress.testing import conformance

test_weights_only = conformance(
    "AutoRoundModifier", settings={"scheme": "W4A16", "group_size": 32, "iters": 4, "lr": 0.02, "ignore": ["lm_head"]}
)
