"""Recipes that are taken by name: `coldpress recipes` lists them."""

from coldpress.plugin import Measured, ReadyRecipe

AWQ = ReadyRecipe(
    title="channels scaled by the activity of inputs, then rounding",
    text="""\
modifiers:
  - AWQModifier: {}
  - QuantizationModifier:
      scheme: ${scheme}
      group_size: ${group_size}
      ignore: ${ignore}
""",
    reads_data=True,
)

W4A16 = ReadyRecipe(
    title="weights in 4 bits with zero points by AWQ",
    text="""\
args: {group_size: 128, ignore: [lm_head, 're:(.*\\.)?(gate|shared_expert_gate|router)(\\.\\w+)?$']}
modifiers:
  - AWQModifier: {}
  - QuantizationModifier:
      scheme: W4A16_ASYM
      group_size: ${group_size}
      ignore: ${ignore}
""",
    reads_data=True,
    measured=Measured(
        kl=0.1209,
        perplexity=33.4,
        original_perplexity=30.14,
        source="choices-awq.json: as it is, then rounding",
    ),
)

NVFP4A16 = ReadyRecipe(
    title="weights in NVFP4 by AWQ",
    text="""\
args: {ignore: [lm_head, 're:(.*\\.)?(gate|shared_expert_gate|router)(\\.\\w+)?$']}
modifiers:
  - AWQModifier: {}
  - QuantizationModifier:
      scheme: NVFP4A16
      ignore: ${ignore}
""",
    reads_data=True,
    measured=Measured(
        kl=0.1038,
        perplexity=33.39,
        original_perplexity=30.14,
        source="choices-awq-then.json: NVFP4A16, scales moved first",
    ),
)
