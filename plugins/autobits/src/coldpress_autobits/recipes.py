"""Recipes that are taken by name: `coldpress recipes` lists them; `--bits` and `--size` fill them in."""

from coldpress.plugin import ReadyRecipe

_ARGS = """\
args:
  target_bits: 4.5
  target_size: null
  candidates: [3, 4, 8]
  group_size: 128
  ignore: [lm_head, 're:(.*\\.)?(gate|shared_expert_gate|router)(\\.\\w+)?$']
modifiers:
  - AutoBitsModifier:
      target_bits: ${target_bits}
      target_size: ${target_size}
      candidates: ${candidates}
      group_size: ${group_size}
      ignore: ${ignore}
"""

_GPTQ = """\
      error_feedback: true
  - GPTQModifier:
      scheme: W4A16
      group_size: ${group_size}
      ignore: ${ignore}
"""

ROUNDED = ReadyRecipe(
    title="bits where they count, rounded to nearest",
    text=_ARGS + "      rounds: true\n",
    reads_data=True,
)

SOLVED = ReadyRecipe(
    title="bits where they count, by GPTQ",
    text=_ARGS + _GPTQ,
    reads_data=True,
)

GUIDED = ReadyRecipe(
    title="bits where they count, by GPTQ guided by the model's loss",
    text=_ARGS + _GPTQ + "      guidance: sampled\n      signed_scales: true\n",
    reads_data=True,
)
