"""What `AutoBitsModifier` promises, when it rounds too; test_modifier.py has it beside a quantizer."""

from coldpress.testing import conformance

test_conformance = conformance(
    "AutoBitsModifier",
    settings={"target_bits": 5.0, "candidates": [3, 4, 8], "group_size": 32, "ignore": ["lm_head"], "rounds": True},
    expected_failures={"no_data": "rounding needs no token, and the report says of whom the cost is not known"},
)
