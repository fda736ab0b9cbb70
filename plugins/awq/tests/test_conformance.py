"""What `AWQModifier` promises, when it rounds too; test_modifier.py has it beside a quantizer."""

from coldpress.testing import conformance

test_groups = conformance(
    "AWQModifier", settings={"scheme": "W4A16_ASYM", "group_size": 32, "ignore": ["lm_head"], "duo_scaling": "both"}
)

test_rows = conformance(
    "AWQModifier", settings={"scheme": "W4A16", "group_size": -1, "n_grid": 4, "ignore": ["lm_head"]}
)

test_blocks = conformance(
    "AWQModifier",
    settings={"scheme": "W4A16", "group_size": 32, "ignore": ["lm_head"], "objective": "block", "n_grid": 3},
)
