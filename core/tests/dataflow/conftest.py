"""Lets the tests of this room import `zoo` and `handmade`, which benchmarks use too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
