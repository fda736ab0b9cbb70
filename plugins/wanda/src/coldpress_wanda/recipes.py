"""Recipes that are taken by name: `coldpress recipes` lists them."""

from coldpress.plugin import Measured, ReadyRecipe

SPARSE_2OF4 = ReadyRecipe(
    title="two of every four weights go, by size times the norm of their input",
    text="""\
args: {ignore: [lm_head, 're:(.*\\.)?(gate|shared_expert_gate|router)(\\.\\w+)?$']}
modifiers:
  - WandaModifier:
      mask_structure: "2:4"
      ignore: ${ignore}
""",
    reads_data=True,
    measured=Measured(
        kl=1.9035,
        perplexity=183.09,
        original_perplexity=30.14,
        source="choices-pruning.json: Wanda 2:4",
    ),
)
