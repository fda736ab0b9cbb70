"""Recipes that are taken by name: `coldpress recipes` lists them."""

from coldpress.plugin import Measured, ReadyRecipe

SPARSE_2OF4 = ReadyRecipe(
    title="two of every four weights go, those that stay make up for them",
    text="""\
args: {ignore: [lm_head, 're:(.*\\.)?(gate|shared_expert_gate|router)(\\.\\w+)?$']}
modifiers:
  - SparseGPTModifier:
      mask_structure: "2:4"
      ignore: ${ignore}
""",
    reads_data=True,
    measured=Measured(
        kl=1.1276,
        perplexity=85.64,
        original_perplexity=30.14,
        source="choices-pruning.json: SparseGPT 2:4",
    ),
)
