"""`coldpress/short`: a small public-domain English text inside this package, so that no network is needed.

Where it is from and how it was made: `texts/README.md`.
"""

import json
from importlib.resources import files

from coldpress.errors import CalibrationError
from coldpress.spelling import suggest

SPLITS = ("calibration", "held_out")


def load(split: str | None = None) -> list[dict[str, str]]:
    """The passages of a split, each of 512 tokens or more.

    Args:
        split: calibration, the default, or held_out, which shares no address and no chapter with it.

    Returns:
        Rows with the columns `source` and `text`.

    Raises:
        CalibrationError: there is no such split.
    """
    name = split or SPLITS[0]
    if name not in SPLITS:
        raise CalibrationError(
            f"coldpress/short has no split {name!r}{suggest(name, SPLITS)}; it has {', '.join(SPLITS)}"
        )
    text = (files("coldpress.calibration") / "texts" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
