"""Recipes that are taken by name: `coldpress recipes` lists them."""

from coldpress.plugin import Measured, ReadyRecipe

RTN = ReadyRecipe(
    title="round to nearest",
    text="""\
modifiers:
  - QuantizationModifier:
      scheme: ${scheme}
      group_size: ${group_size}
      ignore: ${ignore}
""",
)

W4A16 = ReadyRecipe(
    title="weights in 4 bits, rounded to nearest: the fastest, and it loses much",
    text="""\
args: {group_size: 128, ignore: [lm_head, 're:(.*\\.)?(gate|shared_expert_gate|router)(\\.\\w+)?$']}
modifiers:
  - QuantizationModifier:
      scheme: W4A16
      group_size: ${group_size}
      ignore: ${ignore}
""",
    measured=Measured(
        kl=0.3881,
        perplexity=39.85,
        original_perplexity=30.14,
        source="choices-gptq.json: rounding to nearest instead",
    ),
)

W8A8 = ReadyRecipe(
    title="weights and inputs in int8, rounded to nearest",
    text="""\
args: {ignore: [lm_head, 're:(.*\\.)?(gate|shared_expert_gate|router)(\\.\\w+)?$']}
modifiers:
  - QuantizationModifier:
      scheme: W8A8
      ignore: ${ignore}
""",
    measured=Measured(
        kl=0.0301,
        perplexity=31.11,
        original_perplexity=30.14,
        source="choices-smoothquant.json: without SmoothQuant",
    ),
)

FP8_DYNAMIC = ReadyRecipe(
    title="weights and inputs in FP8, rounded to nearest, for GPUs that multiply FP8",
    text="""\
args: {ignore: [lm_head, 're:(.*\\.)?(gate|shared_expert_gate|router)(\\.\\w+)?$']}
modifiers:
  - QuantizationModifier:
      scheme: FP8_DYNAMIC
      ignore: ${ignore}
""",
    measured=Measured(
        kl=0.0253,
        perplexity=30.74,
        original_perplexity=30.14,
        source="choices-awq-then.json: FP8_DYNAMIC",
    ),
)

NVFP4A16 = ReadyRecipe(
    title="weights in NVFP4, rounded to nearest, for GPUs that multiply FP4",
    text="""\
args: {ignore: [lm_head, 're:(.*\\.)?(gate|shared_expert_gate|router)(\\.\\w+)?$']}
modifiers:
  - QuantizationModifier:
      scheme: NVFP4A16
      ignore: ${ignore}
""",
    measured=Measured(kl=0.2282, perplexity=37.11, original_perplexity=30.14, source="choices-awq-then.json: NVFP4A16"),
)
