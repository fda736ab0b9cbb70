"""Several data sets in proportions, and settings that stand beside a name.

"gsm8k:split=train,config=main"                 one data set, with settings of its own
{"ultrachat_200k": 0.7, "my.jsonl": 0.3}        several, each with its share of the samples
{"a:share=2": 1, ...}                           a share may stand beside the name too, as it does on a terminal
"""

import logging
import re
from collections.abc import Mapping
from math import floor, isfinite
from pathlib import Path
from typing import Any

from attrs import evolve, fields_dict

from coldpress.arguments import DatasetArguments
from coldpress.errors import CalibrationError
from coldpress.spelling import suggest

log = logging.getLogger(__name__)

_SETTINGS = re.compile(r"(?P<name>[^:].*?):(?P<settings>\w+=.*)", re.DOTALL)
_ARGUMENTS = {"split": "splits", "config": "dataset_config_name", "column": "text_column"}
_SHARE = "share"


def parts_of(arguments: DatasetArguments) -> list[DatasetArguments]:
    """The arguments of each data set, with the number of samples that it gives.

    Args:
        arguments: that name one data set or several.

    Raises:
        CalibrationError: a setting or a share is none, or several are to be read whole.
    """
    if _is_mixture(arguments.dataset):
        return _mixture(arguments, arguments.dataset)
    if not isinstance(arguments.dataset, str):
        return [arguments]
    name, settings, share = _named(arguments.dataset)
    if share is not None:
        log.warning("share=%g has no effect: %r is the only data set", share, name)
    for key, argument in _ARGUMENTS.items():
        if argument in settings and getattr(arguments, argument) != fields_dict(DatasetArguments)[argument].default:
            raise CalibrationError(f"dataset {arguments.dataset!r} has {key}=, and {argument}= says it too: pass one")
    return [evolve(arguments, dataset=name, **settings)]


def _is_mixture(dataset: Any) -> bool:
    """Whether this is a dict from names to shares."""
    return (
        isinstance(dataset, Mapping)
        and bool(dataset)
        and all(isinstance(name, str) for name in dataset)
        and all(isinstance(share, (int, float)) for share in dataset.values())
    )


def _mixture(arguments: DatasetArguments, shares: Mapping[str, float]) -> list[DatasetArguments]:
    if arguments.dataset_path is not None:
        raise CalibrationError("dataset_path goes with one data set, and dataset has several: name paths there")
    count = arguments.num_calibration_samples
    if count is None:
        raise CalibrationError(
            "several data sets in proportions need a number of samples: num_calibration_samples, in training "
            "max_train_samples"
        )
    found = []
    for text, weight in shares.items():
        name, settings, share = _named(text)
        found.append((name, settings, _checked(weight, text) * (1.0 if share is None else share)))
    counts = _counts([share for _, _, share in found], count)
    if 0 in counts:
        raise CalibrationError(
            f"{found[counts.index(0)][0]!r} has so small a share that none of {count} samples is its: use more samples"
        )
    return [
        evolve(arguments, dataset=name, num_calibration_samples=number, **settings)
        for (name, settings, _), number in zip(found, counts, strict=True)
    ]


def _counts(shares: list[float], count: int) -> list[int]:
    """`count` in these proportions, whole: the largest remainders get one more."""
    exact = [share / sum(shares) * count for share in shares]
    whole = [floor(one) for one in exact]
    order = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    for index in order[: count - sum(whole)]:
        whole[index] += 1
    return whole


def _named(text: str) -> tuple[str, dict[str, Any], float | None]:
    """A name, its settings as arguments, and its share; what is on disk under the whole text is a name.

    Raises:
        CalibrationError: a setting is unknown or there twice.
    """
    match = _SETTINGS.fullmatch(text)
    if match is None or _exists(text):
        return text, {}, None
    found: dict[str, str] = {}
    for pair in _pairs(match["settings"]):
        key, equals, value = pair.partition("=")
        known = (*_ARGUMENTS, _SHARE)
        if key not in known or not equals or not value:
            raise CalibrationError(
                f"dataset {text!r}: {pair!r} is no setting of a data set{suggest(key, known)}; "
                f"a name takes {', '.join(f'{one}=' for one in known)} behind a colon, with commas"
            )
        if key in found:
            raise CalibrationError(f"dataset {text!r} has {key}= twice")
        found[key] = value
    share = found.pop(_SHARE, None)
    settings: dict[str, Any] = {_ARGUMENTS[key]: value for key, value in found.items()}
    return match["name"], settings, None if share is None else _checked(share, text)


def _pairs(settings: str) -> list[str]:
    """At commas outside of brackets, so that a split may be written as the library datasets does."""
    return re.split(r",(?![^\[]*\])", settings)


def _checked(share: Any, text: str) -> float:
    try:
        found = float(share)
    except ValueError:
        found = 0.0
    if not isfinite(found) or found <= 0 or isinstance(share, bool):
        raise CalibrationError(f"dataset {text!r}: a share is a number above 0, got {share!r}")
    return found


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError):  # too long a name, a user that there is not
        return False
