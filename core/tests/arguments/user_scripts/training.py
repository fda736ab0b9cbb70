"""Fine-tuning a pruned model."""

import coldpress

model = coldpress.train("pruned", "recipe.yaml", dataset="texts.jsonl", output_dir="out", learning_rate=1e-5)
coldpress.train("pruned", "recipe.yaml", output_dir="out", learning_rat=1e-5)  # wrong
coldpress.load_modell("m")  # wrong
coldpress.train(3)(4) + coldpress.weight_qparam  # wrong
