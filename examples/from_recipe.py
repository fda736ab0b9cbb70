"""A recipe from a file, and data for those that read some: `python examples/from_recipe.py [MODEL] [RECIPE]`."""

import sys
from pathlib import Path

from coldpress import oneshot

MODEL = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
RECIPE = sys.argv[2] if len(sys.argv) > 2 else Path(__file__).parents[1] / "recipes/w8a8_static.yaml"

oneshot(
    model=MODEL,
    recipe=RECIPE,
    dataset="coldpress/short",  # a text that comes with coldpress; recipes that read no data do not load it
    num_calibration_samples=64,
    max_seq_length=256,
    output_dir=f"{Path(MODEL).name}-{Path(RECIPE).stem}",
)
