"""Recipes that are taken by name: `coldpress recipes` lists them."""

from coldpress.plugin import Measured, ReadyRecipe

GPTQ = ReadyRecipe(
    title="rounding so that the outputs of each layer change least",
    text="""\
modifiers:
  - GPTQModifier:
      scheme: ${scheme}
      group_size: ${group_size}
      ignore: ${ignore}
""",
    reads_data=True,
)

GUIDED = ReadyRecipe(
    title="GPTQ, errors weighted by what they cost the model's loss: a pass forwards and backwards more",
    text="""\
modifiers:
  - GPTQModifier:
      scheme: ${scheme}
      group_size: ${group_size}
      ignore: ${ignore}
      guidance: sampled
      signed_scales: true
""",
    reads_data=True,
)

W4A16 = ReadyRecipe(
    title="weights in 4 bits by GPTQ: the one to begin with",
    text="""\
args: {group_size: 128, ignore: [lm_head, 're:(.*\\.)?(gate|shared_expert_gate|router)(\\.\\w+)?$']}
modifiers:
  - GPTQModifier:
      scheme: W4A16
      group_size: ${group_size}
      ignore: ${ignore}
""",
    reads_data=True,
    measured=Measured(kl=0.0951, perplexity=32.39, original_perplexity=30.14, source="choices-gptq.json: as it is"),
)

W8A8 = ReadyRecipe(
    title="weights and inputs in int8, weights by GPTQ",
    text="""\
args: {ignore: [lm_head, 're:(.*\\.)?(gate|shared_expert_gate|router)(\\.\\w+)?$']}
modifiers:
  - GPTQModifier:
      scheme: W8A8
      ignore: ${ignore}
""",
    reads_data=True,
    measured=Measured(
        kl=0.0278,
        perplexity=30.78,
        original_perplexity=30.14,
        source="choices-smoothquant-gptq.json: without SmoothQuant",
    ),
)
