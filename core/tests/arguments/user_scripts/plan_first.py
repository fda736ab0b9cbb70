"""What a run will take, before it begins."""

from coldpress import plan

predicted = plan("smollm2", "recipe.yaml", max_seq_length=None)
if predicted.after < 2**30 and predicted.host_nbytes() < 2**34:
    low, high = predicted.seconds()
    print(f"{low:.0f} to {high:.0f} s")
names: list[str] = [kind.name for kind in predicted.kinds]
without = plan("smollm2", "recipe.yaml", model_free=True, max_workers=2)
plan("smollm2", "recipe.yaml", number_of_samples=1)  # wrong
print(predicted.size_after)  # wrong
count: str = without.weights  # wrong
