"""The statistics that core offers by name, one a file."""

from coldpress.calibration.statistics.absmax import Absmax
from coldpress.calibration.statistics.gradient import Gamma, TokenSquares, TokenWeight
from coldpress.calibration.statistics.gram import Gram, GramValue
from coldpress.calibration.statistics.histogram import Histogram
from coldpress.calibration.statistics.minmax import Minmax, Range
from coldpress.calibration.statistics.moments import Average, Mean, MeanAbs, SecondMoment
from coldpress.calibration.statistics.observed import Observed

__all__ = [
    "Absmax",
    "Average",
    "Gamma",
    "Gram",
    "GramValue",
    "Histogram",
    "Mean",
    "MeanAbs",
    "Minmax",
    "Observed",
    "Range",
    "SecondMoment",
    "TokenSquares",
    "TokenWeight",
]
