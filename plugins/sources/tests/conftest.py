"""Lets the tests of this plugin import `containers`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
