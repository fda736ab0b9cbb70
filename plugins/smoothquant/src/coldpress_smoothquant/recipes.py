"""Recipes that are taken by name: `coldpress recipes` lists them."""

from coldpress.plugin import Measured, ReadyRecipe

SMOOTHQUANT = ReadyRecipe(
    title="outliers of inputs moved into weights, then rounding",
    text="""\
modifiers:
  - SmoothQuantModifier: {smoothing_strength: auto}
  - QuantizationModifier:
      scheme: ${scheme}
      group_size: ${group_size}
      ignore: ${ignore}
""",
    reads_data=True,
)

W8A8 = ReadyRecipe(
    title="weights and inputs in int8, outliers of inputs moved into weights first",
    text="""\
args: {ignore: [lm_head, 're:(.*\\.)?(gate|shared_expert_gate|router)(\\.\\w+)?$']}
modifiers:
  - SmoothQuantModifier: {smoothing_strength: auto}
  - QuantizationModifier:
      scheme: W8A8
      ignore: ${ignore}
""",
    reads_data=True,
    measured=Measured(
        kl=0.0099,
        perplexity=30.34,
        original_perplexity=30.14,
        source="choices-smoothquant.json: `smoothing_strength: auto`",
    ),
)
